package Affiliated::Api;

# The harness of t/api: Affiliated::Test with the role api behind nginx, clients of it, and every answer checked against
# api/openapi.yaml.
#
#   use Affiliated::Api;
#   my $t = Affiliated::Api->new;
#   $t->api_start;                                  # PostgreSQL, affiliated with the role api, nginx
#   my $admin = $t->person(admin => 1);             # somebody with a password, logged in
#   my $r = $admin->get('/me');                     # {status, headers, body, json}, see Affiliated::Test
#   $r = $admin->post('/merchants', { name => 'Shop' });
#
# new(%o)              as Affiliated::Test's
# api_start(%o)        conf => {section => {name => value}}; roles => [...] (api); nginx => {...} for nginx_start;
#                      pg => {...} for pg_start. affiliated serves by a login of its own, which owns nothing
# api_restart          affiliated alone; api_kill is kill -9
# person(%o)           a person that is there and verified: email, name, admin, totp => 0|1, login => 0; the client that is
#                      logged in. Its password is $t->{password}
# client(%o)           a client: nobody's, or key => {id, secret}
# admin_sql(...)       is psql
#
# A client keeps its cookie and CSRF token, and makes an Idempotency-Key for each POST.
#   get, head, delete, post, put, patch($path, $fields, %o)    $path without /api/v1. %o: headers => [[n, v]...]; key =>
#                      another Idempotency-Key, or undef for none; csrf => another token, or undef; raw => a body as it is;
#                      type => its Content-Type; timestamp, sign_path, signature of a signed call; check => 0: no validation
#   login($email, $password, %fields)   keeps the session; the answer
#   problem($r)        "401 invalid_credentials", or the status alone
#   pages($path)       all rows of a list, page by page
#   {cookie}, {csrf}, {user}, {email}

use strict;
use warnings;

use parent -norequire, 'Affiliated::Test';

use Affiliated::Test ();
use IO::Handle ();
use IPC::Open2 ();
use JSON::PP ();
use Test::More ();

my $json = JSON::PP->new->canonical->utf8;

# scrypt of the password below, at the cost that api_start() sets.
our $PASSWORD = 'correct horse battery';
our $STORED = '$scrypt$ln=10,r=8,p=3$AAECAwQFBgcICQoLDA0ODw$WelTGMpjoYor/yyZfJf7yvObNPcRgNUkJyGxAPspyLI';

sub import
{
    my $caller = caller;

    strict->import;
    warnings->import;
    {
        no strict 'refs';
        *{"${caller}::problem"} = \&problem;
    }
    @_ = ('Affiliated::Test');
    goto &Affiliated::Test::import;
}

sub new
{
    my ($class, @o) = @_;
    my $self = Affiliated::Test::new($class, @o);

    $self->{password} = $PASSWORD;
    return $self;
}

my $NGINX = <<'END';
        location /api/ {
            scgi_pass unix:%%DIR%%/state/api.sock;
            scgi_param REQUEST_METHOD $request_method;
            scgi_param REQUEST_URI $request_uri;
            scgi_param CONTENT_TYPE $content_type;
            scgi_param REMOTE_ADDR $remote_addr;
            scgi_param REQUEST_ID $request_id;
            scgi_param SCGI 1;
            client_max_body_size 600m;
        }
END

sub api_start
{
    my ($self, %o) = @_;
    my $conf = $o{conf} || {};

    $self->pg_start(%{ $o{pg} || {} }) unless $self->{processes}{pg};
    $self->psql("do \$\$ begin if to_regrole('api_login') is null then create role api_login login; end if; end \$\$; "
            . "select affiliate.grant_api_rights('api_login')");
    $self->daemon_conf(
        roles => $o{roles} || ['api'],
        conf => {
            %$conf,
            api => {
                socket => $self->path('state/api.sock'), socket_mode => '0666', threads => 4, temp_path => $self->{dir},
                conninfo => "host=$self->{pg_socket} user=api_login dbname=affiliate", password_cost => 10,
                rate_login => 0, rate_registration => 0, access_log => 'all', %{ $conf->{api} || {} },
            },
        });
    chmod 01777, $self->{dir};
    $self->daemon_start;
    $self->wait_until('the api', sub { -S $self->path('state/api.sock') });
    my %nginx = %{ $o{nginx} || {} };
    $self->nginx_start(affiliate => 0, module => $nginx{affiliate} ? 1 : 0, %nginx, server => $NGINX . ($nginx{server} || ''));
    return $self;
}

sub api_restart { my $self = shift; $self->daemon_stop; return $self->api_again }
sub api_kill { my $self = shift; return $self->daemon_kill }

sub api_again
{
    my $self = shift;

    $self->daemon_start;
    $self->wait_until('the api', sub { $self->client->get('/health', undef, check => 0)->{status} == 200 });
    return $self;
}

sub person
{
    my ($self, %o) = @_;
    my $email = $o{email} || sprintf 'person-%d-%d@example.com', $$, ++$self->{persons};
    my $name = $o{name} || 'Person';
    my $fields = $json->encode({ email => $email, name => $name, _password => $STORED, ($o{admin} ? (admin => 'true') : ()) });
    my $user = JSON::PP::decode_json($self->value("select affiliate.user_create(\$fields\$$fields\$fields\$::jsonb)"))->{user};
    my $client = $self->client;

    @$client{qw(user email)} = ($user, $email);
    if (!defined $o{login} || $o{login}) {
        my $r = $client->login($email, $PASSWORD);
        die "login: $r->{raw}\n" unless $r->{status} == 201;
    }
    return $client;
}

sub client { my ($self, %o) = @_; return bless { test => $self, %o }, 'Affiliated::Api::Client' }

# "401 invalid_credentials"
sub problem
{
    my $r = shift;
    return $r->{json} && ref $r->{json} eq 'HASH' && $r->{json}{code} ? "$r->{status} $r->{json}{code}" : $r->{status};
}

# What the description says of an answer: '' if it is one of its own.
sub validate
{
    my ($self, $method, $path, $r) = @_;

    if (!$self->{validator}) {
        my $pid = IPC::Open2::open2(my $out, my $in, 'python3', '-W', 'ignore', "$Affiliated::Test::TOP/t/lib/openapi.py",
            "$Affiliated::Test::TOP/api/openapi.yaml");
        $in->autoflush(1);
        $self->{validator} = { out => $out, in => $in, pid => $pid };
    }
    my $v = $self->{validator};
    my $body = $r->{body};
    utf8::decode($body) or return 'the body is no UTF-8';
    print { $v->{in} } $json->encode({ method => $method, path => $path, status => $r->{status},
        type => $r->{headers}{'content-type'} || '', body => $body }), "\n";
    my $line = readline $v->{out};
    chomp($line //= 'the validator has gone');
    return $line eq 'ok' ? '' : $line;
}

sub finish
{
    my $self = shift;

    if (my $v = delete $self->{validator}) {
        close $v->{in};
        waitpid $v->{pid}, 0;
    }
    return $self->SUPER::finish;
}

# -------------------------------------------------------------------------------------------------------------------

package Affiliated::Api::Client;

my $count = 0;

sub get { my ($self, $path, $fields, %o) = @_; return $self->call('GET', $path, $fields, %o) }
sub head { my ($self, $path, $fields, %o) = @_; return $self->call('HEAD', $path, $fields, %o) }
sub post { my ($self, $path, $fields, %o) = @_; return $self->call('POST', $path, $fields, %o) }
sub put { my ($self, $path, $fields, %o) = @_; return $self->call('PUT', $path, $fields, %o) }
sub patch { my ($self, $path, $fields, %o) = @_; return $self->call('PATCH', $path, $fields, %o) }
sub delete { my ($self, $path, $fields, %o) = @_; return $self->call('DELETE', $path, $fields, %o) }

sub call
{
    my ($self, $method, $path, $fields, %o) = @_;
    my $t = $self->{test};
    my @headers = @{ $o{headers} || [] };
    my $body = $o{raw};
    my $key = exists $o{key} ? $o{key} : $method eq 'POST' ? sprintf('k-%d-%d', $$, ++$count) : undef;
    my $csrf = exists $o{csrf} ? $o{csrf} : $self->{csrf};

    $path = "/api/v1$path" unless $path =~ m{^/api/};
    $body = $json->encode($fields) if !defined $body && defined $fields;
    push @headers, ['Content-Type', $o{type} || 'application/json'] if defined $body;
    if ($self->{key}) {
        push @headers, $t->sign($self->{key}, method => $method, path => $o{sign_path} || $path, body => $body,
            idempotency_key => $key, (defined $o{timestamp} ? (timestamp => $o{timestamp}) : ()));
        @headers = map { $_->[0] eq 'Affiliate-Signature' && $o{signature} ? [$_->[0], $o{signature}] : $_ } @headers;
    } else {
        push @headers, ['Idempotency-Key', $key] if defined $key;
        push @headers, ['Cookie', "__Host-affiliate=$self->{cookie}"] if $self->{cookie};
        push @headers, ['X-CSRF-Token', $csrf] if defined $csrf && $method !~ /^(?:GET|HEAD)$/;
    }
    my $r = $t->request($method, $path, headers => \@headers, body => $body, timeout => $o{timeout});
    return $self->keep($method, $path, $r, %o);
}

# Takes over the session, and looks whether the answer is as it is described.
sub keep
{
    my ($self, $method, $path, $r, %o) = @_;

    for my $line (grep { lc $_->[0] eq 'set-cookie' } @{ $r->{lines} }) {
        my ($value) = $line->[1] =~ /^__Host-affiliate=([^;]*)/;
        $self->{cookie} = length($value // '') ? $value : undef;
    }
    $r->{json} = eval { $json->decode($r->{body}) } if ($r->{headers}{'content-type'} || '') =~ /json/;
    $self->{csrf} = $r->{json}{csrf} if ref $r->{json} eq 'HASH' && $r->{json}{csrf};
    return $r if defined $o{check} && !$o{check};
    my $wrong = $self->{test}->validate($method, $path, $r);
    Test::More::fail("$method $path is answered as api/openapi.yaml says") && 0 if $wrong;
    Test::More::diag("$wrong\n$r->{raw}") if $wrong;
    return $r;
}

sub login
{
    my ($self, $email, $password, %fields) = @_;

    @$self{qw(cookie csrf)} = ();
    return $self->post('/session', { email => $email, password => $password, %fields }, key => undef);
}

# All rows of a list, in pages.
sub pages
{
    my ($self, $path) = @_;
    my (@rows, $after);

    while (1) {
        my $mark = $path =~ /\?/ ? '&' : '?';
        my $r = $self->get(defined $after ? "$path${mark}after=$after" : $path);
        die "$path: $r->{raw}" unless $r->{status} == 200;
        push @rows, @{ $r->{json}{data} };
        return @rows unless $r->{json}{has_more};
        $after = $r->{json}{next};
    }
}

1;
