# A thousand sessions that call at the same time, reading and changing: each gets its own answer, and in the end everything is
# as it was before.

use Affiliated::Api;

use IO::Select ();

my $sessions = $ENV{SESSIONS} || 1000;
my $t = Affiliated::Api->new;

$t->api_start(conf => { api => { threads => 8, rate_address => 0 } }, nginx => { connections => 8192 });

# Logged in by other means than a thousand scrypts.
my @people = map { my $n = $_; my $p = $t->client; $p->{$_} = sprintf '%s%039d', $_ eq 'csrf' ? 'csrf' : 'cook', $n * 16 for qw(cookie csrf); $p } 1 .. $sessions;
for my $p (@people) {
    substr $p->{$_}, -1, 1, 'A' for qw(cookie csrf);
}
my $values = join ',', map {
    sprintf q{(%d, '%s', '%s')}, $_ + 1, Digest::SHA::sha256_hex($people[$_]{cookie}), Digest::SHA::sha256_hex($people[$_]{csrf})
} 0 .. $#people;
$t->psql(qq{
    insert into affiliate.person (user_id, email, name, password, verified_at)
    select n, 'person' || n || '\@example.com', 'Person ' || n, '$Affiliated::Api::STORED', now() from generate_series(1, $sessions) n;
    insert into affiliate.session (user_id, token_hash, csrf_hash) values $values;
});

# Sends one request for each at once and reads the answers as they come.
sub all_at_once
{
    my $request = shift;
    my $select = IO::Select->new;
    my (%of, @answers);

    for my $n (0 .. $#people) {
        my $c = $t->keepalive;
        $c->send($request->($n, $people[$n]));
        $select->add($c->{socket});
        $of{ $c->{socket} } = [$n, $c];
    }
    my $end = time + 120;
    while ($select->count && time < $end) {
        for my $socket ($select->can_read(1)) {
            my ($n, $c) = @{ $of{$socket} };
            $answers[$n] = $c->response;
            $select->remove($socket);
            $c->close;
        }
    }
    return @answers;
}

sub headers { my $p = shift; return "Host: localhost\r\nConnection: close\r\nCookie: __Host-affiliate=$p->{cookie}\r\n" }

sub wrong { my ($check, @answers) = @_; return scalar grep { !$answers[$_] || $answers[$_]{status} != 200 || !$check->($_, JSON::PP::decode_json($answers[$_]{body})) } 0 .. $#people }

for my $round (1, 2) {
    my @answers = all_at_once(sub { my ($n, $p) = @_; "GET /api/v1/me HTTP/1.1\r\n" . headers($p) . "\r\n" });
    is(wrong(sub { my ($n, $me) = @_; $me->{user} == $n + 1 }, @answers), 0, "$sessions at once are told who they are");
    is($t->validate('GET', '/api/v1/me', $answers[$t->random($sessions)]), '', 'as it is described');

    @answers = all_at_once(sub {
        my ($n, $p) = @_;
        my $body = JSON::PP::encode_json({ name => "Name $n of $round" });
        return "PATCH /api/v1/me HTTP/1.1\r\n" . headers($p) . "X-CSRF-Token: $p->{csrf}\r\nContent-Type: application/json\r\nContent-Length: "
            . length($body) . "\r\n\r\n$body";
    });
    is(wrong(sub { my ($n, $me) = @_; $me->{name} eq "Name $n of $round" }, @answers), 0, 'and change their names');
    is($t->value("select count(*) from affiliate.person p where p.name = 'Name ' || p.user_id - 1 || ' of $round'"), $sessions, 'which they have then');
}

is($t->value('select count(*) from affiliate.audit_record'), 2 * $sessions, 'each change is in the record');
is($t->value("select count(*) from pg_stat_activity where usename = 'api_login'"), 8, 'by eight connections');

done_testing();
