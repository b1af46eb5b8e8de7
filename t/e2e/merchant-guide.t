# conf.examples/merchant/README.md, as a merchant goes through it: in each language its commands run as they are printed, one after
# the other in one shell, from a fresh test key to a green checklist; and print what it says.

use utf8;
use Affiliated::Api;

use File::Copy ();
use IO::Select ();
use IO::Socket::INET ();
use IPC::Open2 ();
use POSIX ();

my $t = Affiliated::Api->new;
my $examples = "$Affiliated::Test::TOP/conf.examples/merchant";
my $readme = $t->slurp("$examples/README.md");
utf8::decode($readme);
my %programs = (sh => 'sh', php => 'php', py => 'python3', mjs => 'node');

# [language, text] of each block; what is printed stands behind its commands.
my @blocks;
while ($readme =~ /^```(\w+)\n(.*?)^```$/msg) {
    push @blocks, [$1, $2];
}
my ($first) = grep { $_->[1] =~ /^shop\(\)/m } @blocks;
my @languages = $first->[1] =~ /\w+ shop\.(\w+)/g;
is(join(' ', sort @languages), join(' ', sort keys %programs), 'the document names a program in each language');
cmp_ok(scalar(grep { $_->[0] eq 'text' } @blocks), '>', 15, 'and says what is printed');

$t->redis_start;
$t->api_start(roles => [qw(api clicks conversions holds projection partitions)], nginx => { affiliate => 1 });
my $admin = $t->person(admin => 1, name => 'Admin');

# --- one shell ---------------------------------------------------------------------------------------------------------

sub shell_open
{
    my ($dir) = @_;
    my $pid = IPC::Open2::open2(my $out, my $in, 'sh', '-c', "cd '$dir' && exec sh 2>&1");

    $in->autoflush(1);
    return { in => $in, out => $out, pid => $pid, select => IO::Select->new($out) };
}

# What the commands print, and the exit code of the last one.
sub shell_run
{
    my ($shell, $commands) = @_;
    my $output = '';

    print { $shell->{in} } "$commands\nprintf '\\n--done %s--\\n' \$?\n";
    while ($output !~ s/\n--done (\d+)--\n\z//) {
        die "the shell is silent after\n$commands$output" unless $shell->{select}->can_read(180);
        sysread $shell->{out}, $output, 65536, length $output or die "the shell has gone after\n$commands$output";
    }
    return wantarray ? ($output, $1) : $output;
}

sub shell_close { my $shell = shift; close $shell->{in}; waitpid $shell->{pid}, 0 }

# The document's "…" is anything.
sub pattern
{
    my ($text) = @_;
    my $pattern = join '.*', map { quotemeta } split /…/, $text =~ s/\n\z//r, -1;

    $pattern =~ s/(?:\\ )+/\\s*/g;      # JSON is printed without spaces or with
    return qr/\A\s*$pattern\s*\z/s;
}

# --- the steps ---------------------------------------------------------------------------------------------------------

sub merchant_ready
{
    my ($name) = @_;
    my $owner = $t->person(name => 'Maya');
    my $merchant = $t->cli_json(qw(merchant create --name), 'Himal Shop', qw(--host himal.example))->{merchant};

    $t->cli_json('campaign', 'create', '--merchant', $merchant, '--name', 'Everything', qw(--currency NPR
        --rate-basis-points 1000 --fee-basis-points 0 --hold), '30 days');
    $t->psql("insert into affiliate.member (merchant_id, user_id, role) values ($merchant, $owner->{user}, 'owner')");
    my $campaign = $owner->get("/merchants/$merchant/campaigns")->{json}{data}[0]{campaign};
    my $key = $owner->post("/merchants/$merchant/keys", { livemode => JSON::PP::false, label => $name })->{json};
    return { owner => $owner, merchant => $merchant, campaign => $campaign, key => $key };
}

# The reader's own words in place of the document's.
sub own
{
    my ($text, $m, $suffix) = @_;

    $text =~ s{https://(?:go|api)\.example\.com}{http://127.0.0.1:$t->{port}}g;
    $text =~ s/(AFFILIATE_MERCHANT)=1$/$1=$m->{merchant}/m;
    $text =~ s/ak_test_…/$m->{key}{key}/;
    $text =~ s/aks_test_…/$m->{key}{secret}/;
    $text =~ s/"campaign": 1,/"campaign": $m->{campaign},/;
    $text =~ s/^(shop\(\) \{) \w+ shop\.\w+/$1 $programs{$suffix} shop.$suffix/m;
    return $text;
}

sub walk
{
    my ($m, $suffix, $dir) = @_;
    my $shell = shell_open($dir);

    for my $i (0 .. $#blocks) {
        my ($language, $text) = @{ $blocks[$i] };
        next unless $language eq 'sh';
        my $commands = own($text, $m, $suffix);
        my ($title) = $commands =~ /^(.{0,90})/;
        my $expected = $i < $#blocks && $blocks[ $i + 1 ][0] eq 'text' ? pattern($blocks[ $i + 1 ][1]) : qr/\A\s*\z/;
        # What only looks, or waits for a link or an order to arrive, is tried until it has.
        my $again = $commands =~ /api GET|curl|approve '|dry_run=true/;
        my ($output, $tries) = ('', 0);
        do {
            sleep 0.3 if $tries;
            $output = shell_run($shell, $commands);
        } while ($again && $output !~ $expected && ++$tries < 100);
        like($output, $expected, $title) or last;
    }
    shell_close($shell);
}

# --- in a shop's own pages ---------------------------------------------------------------------------------------------

# How the document's snippet is put before a socket, and how the shop finds the click of a Cookie later.
my %pages = (
    php => {
        block => 'php', file => 'landing.php', head => "<?php\n", serve => sub { ('php', '-S', "127.0.0.1:$_[0]", 'landing.php') },
        click_of => ['-r', 'require "shop.php"; parse_str(strtr($argv[1], ["; " => "&"]), $c); echo Affiliated\click_of($c) ?? "none", "\n";'],
    },
    py => {
        block => 'python', file => 'landing.py', head => '', serve => sub {
            ('python3', '-c', "from landing import landing; from wsgiref.simple_server import make_server; "
                . "make_server('127.0.0.1', $_[0], landing).serve_forever()");
        },
        click_of => ['-c', 'import shop, sys; print(shop.click_of(sys.argv[1]) or "none")'],
    },
    mjs => {
        block => 'js', file => 'landing.mjs', head => '', serve => sub {
            ('node', '--input-type=module', '-e', "import { createServer } from 'node:http'; import { landing } from './landing.mjs'; "
                . "createServer(landing).listen($_[0], '127.0.0.1')");
        },
        click_of => ['--input-type=module', '-e', 'import { clickOf } from "./shop.mjs"; console.log(clickOf(process.argv[1]) ?? "none")'],
    },
);

sub pages
{
    my ($suffix, $dir) = @_;
    my $page = $pages{$suffix};
    my $click = '0' x 39;
    my $cookie = "affiliate_click_id=$click; Max-Age=2592000; Path=/; Secure; HttpOnly; SameSite=Lax";
    my ($snippet) = map { $_->[1] } grep { $_->[0] eq $page->{block} } @blocks;
    my $port = $t->port;

    open my $file, '>', "$dir/$page->{file}" or die $!;
    print $file $page->{head}, $snippet;
    close $file;
    my $pid = fork // die "fork: $!";
    if (!$pid) {
        chdir $dir;
        open STDOUT, '>', "$dir/server.log";
        open STDERR, '>&', \*STDOUT;
        exec $page->{serve}->($port) or POSIX::_exit(127);
    }
    my $curl = sub { my (undef, $out) = $t->run('curl', '-s', '-i', "http://127.0.0.1:$port$_[0]"); return $out };
    $t->wait_until('the page', sub { $curl->('/') =~ m{^HTTP/1\.\d 200}m }, 60) or diag $t->slurp("$dir/server.log");
    like($curl->("/?a=1&affiliate_click_id=$click"), qr/^Set-Cookie: \Q$cookie\E\r$/m, 'the landing page keeps the click');
    unlike($curl->("/?affiliate_click_id=$click%0d%0aX"), qr/^(?:Set-Cookie|X\r?$)/mi, 'and nothing that is none');
    kill 'TERM', $pid;
    waitpid $pid, 0;

    my @of = ({ dir => $dir }, $programs{$suffix}, @{ $page->{click_of} });
    is(($t->run(@of, "a=b; affiliate_click_id=$click; c=d"))[1], "$click\n", 'the order finds it');
    is(($t->run(@of, "a=b; affiliate_click_id=x; c=d"))[1], "none\n", 'or finds none');
}

# --- the outbox ----------------------------------------------------------------------------------------------------------

# A server that answers one call after the other with these statuses, and writes down the key and the body of each.
sub answer_with
{
    my ($log, @statuses) = @_;
    my $server = IO::Socket::INET->new(Listen => 5, LocalAddr => '127.0.0.1') or die "listen: $!";
    my $pid = fork // die "fork: $!";

    return ($server->sockport, $pid) if $pid;
    for my $status (@statuses) {
        my $client = $server->accept;
        my $request = '';
        while ($request !~ /\r\n\r\n/ or length($request) - $+[0] < ($request =~ /^Content-Length: *(\d+)/mi)[0]) {
            sysread $client, $request, 65536, length $request or last;
        }
        my ($key) = $request =~ /^Idempotency-Key: *(\S+)/mi;
        open my $file, '>>', $log;
        print $file "$key ", $request =~ s/.*?\r\n\r\n//sr, "\n";
        close $file;
        print $client "HTTP/1.1 $status Answer\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}";
        close $client;
    }
    POSIX::_exit(0);
}

sub outbox
{
    my ($suffix, $dir) = @_;
    my $log = "$dir/calls.log";
    my @statuses = (503, 401, 409, 429, 500, 202);
    my ($port, $pid) = answer_with($log, @statuses);
    my %env = (AFFILIATE_URL => "http://127.0.0.1:$port/v1/conversions", AFFILIATE_KEY => 'ak_test_x', AFFILIATE_SECRET => 'aks_test_x',
        AFFILIATE_OUTBOX => "$dir/kept");
    my @shop = ({ dir => $dir, env => \%env }, $programs{$suffix}, "shop.$suffix");
    my @waits;

    my (undef, $out) = $t->run(@shop, 'tell', 'pending', 'An "order" \\ 1', '0' x 39, '10.00', 'NPR');
    for my $status (@statuses) {
        like($out, qr/^$status/, "answered $status");
        my ($file) = glob "$dir/kept/*-*";
        last unless $file;
        my ($due, $tries) = split /\s*\n/, $t->slurp($file);
        push @waits, $tries == @waits + 1 ? sprintf '%.0f', ($due - time) / 60 : "tried $tries times";
        is(($t->run(@shop, 'send'))[1], '', 'it is not due');
        (undef, $out) = $t->run(@shop, 'send', 'now');
    }
    waitpid $pid, 0;
    is("@waits", '1 2 4 8 16', 'it waits longer each time, in minutes');
    is(join(' ', glob "$dir/kept/*"), '', 'what is accepted is gone');
    my @calls = split /\n/, $t->slurp($log);
    is(scalar @calls, 6, 'six calls');
    is(scalar(keys %{ { map { $_ => 1 } @calls } }), 1, 'of one key and one body');
    my ($key, $body) = $calls[0] =~ /^(\S+) (.*)/;
    like($key, qr/^pending-[0-9a-f]{32}$/, 'the key');
    is(JSON::PP::decode_json($body)->{order_id}, 'An "order" \\ 1', 'the order');

    ($port, $pid) = answer_with($log, 422);
    $env{AFFILIATE_URL} =~ s/:\d+/:$port/;
    (undef, $out) = $t->run(@shop, 'tell', 'cancelled', 'A-2', '0' x 39);
    waitpid $pid, 0;
    is(scalar(my @refused = glob "$dir/kept/refused/cancelled-*"), 1, 'what is refused for good is set aside');
    is(scalar(my @left = glob "$dir/kept/*-*"), 0, 'and not sent again');
}

sub checklist
{
    my ($m) = @_;
    return join ' ', map { $_->{item} } grep { !$_->{done} } @{ $m->{owner}->get("/merchants/$m->{merchant}/checklist")->{json}{items} };
}

for my $suffix (@languages) {
    my ($found) = grep { -x } map { "$_/$programs{$suffix}" } split /:/, $ENV{PATH};

    subtest $suffix => sub {
        plan skip_all => "$programs{$suffix} is not installed" unless $found;

        my $m = merchant_ready($suffix);
        my $dir = $t->path("shop-$suffix");
        mkdir $dir or die $!;
        for my $name ("shop.$suffix", "sign.$suffix") {
            File::Copy::cp("$examples/$name", "$dir/$name") or die "$name: $!";
        }
        is(checklist($m), 'site_verified test_link_followed signed_call_accepted approval_seen refund_seen retry_seen live_key_made',
            'there is a test key, and nothing else');

        walk($m, $suffix, $dir);
        is(($t->run({ dir => $dir }, $programs{$suffix}, "shop.$suffix", 'landing', 'a=1&affiliate_click_id=short'))[1], "no click\n",
            'what is no click_id is not kept');
        pages($suffix, $dir) if $pages{$suffix};
        outbox($suffix, $dir);
        my $left;
        $t->wait_until('the checklist', sub { ($left = checklist($m)) eq 'site_verified live_key_made' });
        is($left, 'site_verified live_key_made', 'all that a program can do is green');

        # What people do: the site is proven, as by the role that looks there, an admin approves, a live key is made.
        my $at = "/merchants/$m->{merchant}";
        $m->{owner}->post("$at/site-verifications", { host => 'himal.example', method => 'file' });
        my ($challenge) = map { $_->[2] } grep { $_->[0] == $m->{merchant} }
            $t->rows('select merchant_id, host, challenge from affiliate.site_verification_take(10)');
        $t->psql("select affiliate.site_verification_done($m->{merchant}, 'himal.example', '$challenge', true, 'found')");
        $admin->post("/admin$at/approve", { reason => 'Known' });
        is(problem($m->{owner}->post("$at/keys", { livemode => JSON::PP::true })), 201, 'a live key');
        is(checklist($m), '', 'the checklist is green');
        ok($m->{owner}->get("$at/checklist")->{json}{done}, 'and says so');

        is($t->value("select count(*) from affiliate.order_fact where merchant_id = $m->{merchant} and livemode"), 0, 'nothing of it was live');
    };
}

my ($code, $out) = $t->cli('audit');
is($code, 0, 'the books are right') or diag $out;

done_testing();
