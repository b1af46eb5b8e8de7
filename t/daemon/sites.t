# The role sites: TXT records and files that prove a host, what else is found there, and what must never be asked.

use Affiliated::Test;
use Affiliated::Daemon;
use Affiliated::Sites;

my $t = Affiliated::Test->new;

$t->pg_start;
$t->psql("insert into affiliate.merchant (name, hosts) values ('Shop', '{other.example}')");
my $merchant = $t->value('select merchant_id from affiliate.merchant');
my $challenge = 'k3vQ0ZbLrT5yWm8NcXs2Hd7JfPg9Aa1B';
my $sites = Affiliated::Sites->new($t);
my %conf = (interval => '50ms', timeout => '20s', dns_server => $sites->dns, ca_file => Affiliated::Smtp::authority($t)->{ca});

# What has become of a host, once it was looked at.
sub look
{
    my ($method, $host) = @_;
    $t->psql("insert into affiliate.site_verification (merchant_id, host, method, challenge) values ($merchant, '$host', '$method', '$challenge')
        on conflict (merchant_id, host) do update set next_at = now(), tries = 0, checked_at = null, state = 'pending'; notify affiliate_site");
    $t->wait_until("a look at $host", sub { $t->value("select checked_at is not null from affiliate.site_verification where host = '$host'") eq 't' });
    return ($t->rows("select state, coalesce(detail, '') from affiliate.site_verification where host = '$host'"))[0];
}

sub is_found { my ($method, $host, $name) = @_; return is_deeply(look($method, $host), ['verified', ''], $name) }
sub is_not
{
    my ($method, $host, $detail, $name) = @_;
    my $got = look($method, $host);
    is($got->[0], 'pending', $name);
    return like($got->[1], $detail, "and told: $got->[1]");
}
sub restart { my %o = @_; $t->daemon_stop if $t->alive('daemon'); return $t->daemon_start(roles => ['sites'], conf => { sites => { %conf, %o } }) }

# --- TXT records --------------------------------------------------------------------------------------------------------

restart();
$sites->txt('_affiliated.a.example', ["affiliated-site=$challenge"]);
is_found('dns', 'a.example', 'a TXT record proves a host');
is($t->value("select hosts::text from affiliate.merchant"), '{other.example,a.example}', 'links may lead there then');
$sites->txt('_affiliated.b.example', ['v=spf1 -all', 'x' x 700, "  affiliated-site=$challenge\t"]);
is_found('dns', 'b.example', 'among others, with blanks around it');
$sites->txt('_affiliated.c.example', ["affiliated-site=" . lc $challenge]);
is_not('dns', 'c.example', qr/^the TXT record _affiliated\.c\.example has 'affiliated-site=k3vq.*', not 'affiliated-site=\Q$challenge\E'$/, 'another challenge is none');
$sites->txt('_affiliated.d.example', ["affiliated-site=$challenge more"]);
is_not('dns', 'd.example', qr/not 'affiliated-site=/, 'nor is more than the challenge');
$sites->txt('_affiliated.e.example', ["\xff\x00\x1b[31m", 'two']);
is_not('dns', 'e.example', qr/has '\?\?\?\[31m' and others, not/, 'what is found is shown, clean');
$sites->txt('_affiliated.f.example', []);
is_not('dns', 'f.example', qr/^_affiliated\.f\.example has no TXT record/, 'a name without records');
is_not('dns', 'g.example', qr/^there is no _affiliated\.g\.example in the DNS; it needs/, 'no such name');
$sites->txt('_affiliated.h.example', 'servfail');
is_not('dns', 'h.example', qr/^the name servers did not answer/, 'SERVFAIL');
$sites->txt('_affiliated.j.example', 'garbage');
is_not('dns', 'j.example', qr/can't be read|did not answer/, 'garbage');
is_deeply([grep { /^GET/ } $sites->asked], [], 'no host was asked itself');
my $tries = $t->value("select (next_at > now() + interval '30 seconds') from affiliate.site_verification where host = 'j.example'");
is($tries, 't', 'it is looked at again later, not at once');
cmp_ok(value($t, 'sites', 'sites_checked_total'), '>=', 9, 'looks are counted');
is(value($t, 'sites', 'sites_proven_total'), 2, 'and what is proven');

restart(timeout => '1s');
$sites->txt('_affiliated.i.example', 'silent');
is_not('dns', 'i.example', qr/^the name servers did not answer/, 'silence');

# --- files ----------------------------------------------------------------------------------------------------------------

SKIP: {
    skip 'IO::Socket::SSL is not installed: https is not tried', 1 unless $sites->https;
    restart(connect_to => $sites->https);
    ok($t->wait_until('the warning', sub { $t->daemon_log =~ /warning sites: sites\.connect_to is set/ }), 'sites.connect_to is warned of');
    $sites->file('shop.sites.example', { status => 200, body => "\n $challenge\r\n" });
    is_found('file', 'shop.sites.example', 'a file proves a host');
    is((grep { /^GET/ } $sites->asked)[-1], 'GET shop.sites.example /.well-known/affiliated-site.txt', 'asked for by its name');
    my %told = (
        'empty.sites.example' => [{ status => 200, body => '' }, qr{^https://empty\.sites\.example/\.well-known/affiliated-site\.txt has '', not '$challenge'$}],
        'other.sites.example' => [{ status => 200, body => "<html>\0\e" }, qr/has '<html>\?\?', not/],
        'more.sites.example' => [{ status => 200, body => "$challenge more" }, qr/not '/],
        'tail.sites.example' => [{ status => 200, body => $challenge . ' ' x 1000 . 'x' }, qr/has '\Q$challenge\E' and more, not '/],
        'gone.sites.example' => [{ status => 404, body => $challenge }, qr/is answered with status 404, not 200$/],
        'teapot.sites.example' => [{ status => 503, body => $challenge }, qr/status 503/],
        'moved.sites.example' => [{ status => 302, body => $challenge, headers => { Location => 'https://shop.sites.example/.well-known/affiliated-site.txt' } }, qr/leads elsewhere \(status 302\)/],
        'local.sites.example' => [{ status => 301, body => '', headers => { Location => 'http://127.0.0.1/' } }, qr/leads elsewhere/],
        'large.sites.example' => [{ status => 200, body => $challenge . ' ' x 70000 }, qr/has more than 64 KiB$/],
        'endless.sites.example' => [{ status => 200, body => '', endless => 1 }, qr/has more than 64 KiB$/],
        'flood.sites.example' => [{ status => 200, body => '', flood => 1 }, qr/has more than 64 KiB$/],
        'www.no.example' => [{ status => 200, body => $challenge }, qr/has no valid certificate: .*www\.no\.example/],
        );
    for my $host (sort keys %told) {
        $sites->file($host, $told{$host}[0]);
        is_not('file', $host, $told{$host}[1], $host);
    }
    $sites->file('blank.sites.example', { status => 200, body => $challenge . ' ' x 60000 });
    is_found('file', 'blank.sites.example', 'blanks are nothing');
    is((grep { m{^GET shop\.sites\.example} } $sites->asked), 1, 'no redirect was followed');
    $sites->file('hang.sites.example', { status => 200, body => '', hang => 1 });
    restart(connect_to => $sites->https, timeout => '1s');
    is_not('file', 'hang.sites.example', qr/can't be read: .*timed out/, 'a host that never answers');
    restart(connect_to => $sites->https, ca_file => '');
    is_not('file', 'trust.sites.example', qr/has no valid certificate/, 'an authority that nobody knows');
}

# --- what must not be asked --------------------------------------------------------------------------------------------------

my %inside = ('loop' => '127.0.0.1', 'loop2' => '127.8.9.10', 'zero' => '0.0.0.0', 'ten' => '10.1.2.3', 'cgnat' => '100.64.0.1', 'meta' => '169.254.169.254',
    'private' => '172.31.255.255', 'home' => '192.168.1.1', 'test' => '192.0.2.1', 'bench' => '198.19.0.1', 'multi' => '224.0.0.251', 'cast' => '255.255.255.255',
    'six' => '::1', 'any' => '::', 'ula' => 'fd00::1', 'link' => 'fe80::1', 'mapped' => '::ffff:127.0.0.1', 'group' => 'ff02::1', 'nat' => '64:ff9b::10.0.0.1',
    'relay' => '2002:a00:1::1', 'doc' => '2001:db8::1', 'teredo' => '2001::1', 'site' => 'fec0::1', 'compat' => '::127.0.0.1');
$t->{env}{AFFILIATED_TEST_NAMES} = $t->write('names', join '', map { "$_.inside.example $inside{$_}\n" } sort keys %inside);
chmod 0644, $t->path('names');
$t->run('cp', "$Affiliated::Test::TOP/build/t/lib/names.so", $t->path('names.so'));
chmod 0755, $t->path('names.so');
$t->{preload} = $t->path('names.so');
restart();
for my $name (sort keys %inside) {
    my $got = look('file', "$name.inside.example");
    like($got->[1], qr/^\Q$name\E\.inside\.example is at \S+, which is no address on the internet$/, "$inside{$name} is not asked");
}
for my $host ('localhost', '127.0.0.1', '2130706433', '0x7f.1', '[::1]', 'a.example:443', 'a.example/x', 'user@a.example', 'a.example?', '..') {
    my $got = look('file', $host);
    like($got->[1], qr/is no host name on the internet$|is at 127\.0\.0\.1|in the DNS/, "$host is not asked");
}
like(look('file', 'nowhere.invalid')->[1], qr/^there is no nowhere\.invalid in the DNS$/, 'a name that there is not');
is(scalar(grep { /inside/ } $sites->asked), 0, 'nothing came to this host');
$t->{env}{$_} = 'http://' . $sites->dns for qw(https_proxy HTTPS_PROXY all_proxy ALL_PROXY);
restart();
like(look('file', 'loop.inside.example')->[1], qr/which is no address/, 'no proxy of the environment is a way around');
done_testing();
