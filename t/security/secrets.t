# After a day of traffic in small: no secret and no visitor's address in any file, in Redis or in PostgreSQL; and who may read
# what there is.

use Affiliated::Test;
use Affiliated::Daemon;

use Fcntl qw(:mode);
use File::Find ();

my $t = Affiliated::Test->new;
my $marker = 'Zebra-' . $t->random(1 << 30);
my %visitor = ('203.0.113.77' => '203.0.113.0/24', '2001:db8:a1b2:c3d4:e5f6:a7b8:c9d0:77aa' => '2001:db8:a1b2::/48');

$t->redis_start;
$t->pg_start;
$t->daemon_start(conf => { log => { level => 'debug' } });
my $w = $t->world;
$t->wait_until('the projection', sub { $t->redis('EXISTS', "aff:link:$w->{link}", "aff:key:$w->{key}{id}", "aff:key:$w->{test_key}{id}") == 3 });

# nginx's own logs say what its operator wants of addresses: here nothing, so that every one that is found is ours.
my $quiet = 'set_real_ip_from 127.0.0.1; real_ip_header X-Real-IP; log_format quiet "$request $status"; affiliate_address_rate rate=1r/m burst=1;';
my $log = sub { return "access_log $t->{dir}/access.log quiet;" };
$t->nginx_start(http => $quiet, server => $log->());

my @clicks;
for my $round (1 .. 3) {
    for my $address (sort keys %visitor) {
        my $r = $t->get("/r/$w->{link}?sub1=$marker", 'User-Agent', "Mozilla/5.0 (X11; Linux) $marker", 'X-Real-IP', $address);
        my ($id) = ($r->{headers}{location} // '') =~ /affiliate_click_id=([0-9a-z]{39})/;
        push @clicks, $id if $id;
        $t->get("/r/$w->{link}", 'User-Agent', 'WhatsApp/2.23', 'X-Real-IP', $address);
        $t->get("/r/unknown$round", 'X-Real-IP', $address);
    }
}
is(scalar @clicks, 6, 'visitors');

my $count = 0;
sub event { return { click_id => $clicks[0], order_id => 'O-' . ++$count, status => 'approved', amount => '10.00', currency => 'NPR', @_ } }

is($t->call($w->{key}, event())->{status}, 202, 'an order');
is($t->postback($w->{key}, event())->{status}, 202, 'a postback');
my @answers = (
    $t->call({ %{ $w->{key} }, secret => 'x' }, event()), $t->call({ %{ $w->{test_key} }, secret => 'x' }, event()),
    $t->call($w->{key}, event(), timestamp => 1), $t->call($w->{key}, '{'), $t->postback({ %{ $w->{key} }, secret => 'x' }, event()),
    $t->call($w->{test_key}, event()), $t->get('/status'), $t->get('/metrics'),
);
unlike($_->{raw}, qr/\Q$w->{key}{secret}\E|\Q$w->{test_key}{secret}\E/, 'no answer tells a secret') for @answers;

drained($t);
$t->wait_until('clicks and orders', sub { $t->value('select count(*) from affiliate.order_fact') == 2 && clicks($t) >= 12 });
is_deeply([sort map { $_->[0] } $t->rows('select distinct address_prefix from affiliate.click')], [sort values %visitor],
    'PostgreSQL has the network of each visitor, a /24 and a /48');
is($t->value('select count(distinct visitor) from affiliate.click where verdict < 3'), 2, 'and tells visitors apart by a hash');

# Commands that an operator gives and that write.
$t->cli('status');
$t->cli('dead-letters', 'list');
my ($code, $dump) = $t->cli('dump', glob $t->path('spool/*'));

# Some more that stays in the spool and the streams.
$t->daemon_stop;
for my $address (sort keys %visitor) {
    $t->get("/r/$w->{link}?sub1=$marker", 'User-Agent', "Mozilla/5.0 (X11; Linux) $marker", 'X-Real-IP', $address);
}
$t->wait_until('a batch waits in Redis', sub { $t->redis('XLEN', 'aff:clicks:0') });

# --- looking everywhere -----------------------------------------------------------------------------------------------------

my (undef, $master) = split ' ', $t->slurp($t->{keys});
my %never = (
    'the master key' => qr/\Q$master\E/i, 'the master key in bytes' => qr/\Q@{[pack 'H*', $master]}\E/,
    'a live secret' => qr/\Q$w->{key}{secret}\E/, 'a test secret' => qr/\Q$w->{test_key}{secret}\E/,
    'any secret' => qr/aks_(?:live|test)_[A-Za-z0-9]{16}/,
    'an IPv4 address' => qr/203\.0\.113\.77/, 'an IPv6 address' => qr/2001:0?db8:a1b2:c3d4:e5f6/i,
    'an IPv6 address in bytes' => qr/\x20\x01\x0d\xb8\xa1\xb2\xc3\xd4\xe5\xf6/,
);

sub find_in
{
    my ($where, $text) = @_;
    return map { "$_ in $where" } grep { $text =~ $never{$_} } sort keys %never;
}

# It does find what there is.
is(join(', ', find_in('x', "$master 203.0.113.77 $w->{key}{secret}")), 'a live secret in x, an IPv4 address in x, any secret in x, the master key in x',
    'each is found where it is');

$t->redis('CONFIG', 'SET', 'rdbcompression', 'no');
$t->redis('SAVE');
$t->psql('checkpoint');
my $sql = ($t->run({ user => 'postgres' }, $t->pg_bin . '/pg_dump', '-h', $t->{pg_socket}, '-U', 'postgres', 'affiliate'))[1];
like($sql, qr/\Q$marker\E/, 'the dump of PostgreSQL holds the traffic');
my @found = find_in('pg_dump', $sql);
my %marked = (spool => 0, redis => 0, pg => 0);
my $files = 0;

File::Find::find({ no_chdir => 1, wanted => sub {
    my $path = $File::Find::name;

    return if !-f $path || $path eq $t->{keys} || $path =~ m{/(?:nginx\.conf|affiliated|access\.log)$};
    # nginx adds the client to lines about a request. What the module says itself is in front of that.
    my $text = $t->slurp($path);
    $text =~ s/, client: .*//g if $path =~ m{/error\.log$};
    $files++;
    my ($part) = $path =~ m{^\Q$t->{dir}\E/(\w+)/};
    $marked{$part} = 1 if $part && $text =~ /\Q$marker\E/;
    push @found, find_in($path, $text);
} }, $t->{dir});
push @found, find_in('dump', $dump // '');

is(join("\n", @found), '', 'none of them is in any file: logs, spool, Redis, tables and their write-ahead log');
cmp_ok($files, '>', 100, 'so many were read');
is_deeply(\%marked, { spool => 1, redis => 1, pg => 1 }, 'the traffic itself is in spool, Redis and PostgreSQL') or diag explain \%marked;

# --- modes ---------------------------------------------------------------------------------------------------------------------

sub mode { return sprintf '%04o', S_IMODE((lstat $_[0])[2] // 0) }

$t->daemon_start;
my @segments = glob $t->path('spool/*');
cmp_ok(scalar @segments, '>', 0, 'the spool has files');
is(mode($t->path('spool')), '0700', 'the spool is its owner\'s');
is(join(' ', map { "$_ " . mode($_) } grep { -f && mode($_) ne '0600' } @segments), '', 'and so is every file in it');
is(mode($t->path('state/status.sock')), '0660', 'the status socket is for the daemon\'s user and group');
my @open = map { mode($_) =~ /[2367]$/ ? $_ : () } grep { -e && !-l && !m{/(?:redis\.sock|\.s\.PGSQL\.\d+|stub\d*\.sock)$} } glob("$t->{dir}/*"), glob("$t->{dir}/state/*"), @segments;
is("@open", '', 'and nothing may be written by everybody');

# Who reads keys that everybody may read is told.
chmod 0644, $t->{keys};
like(($t->nginx_test)[1], qr/\[warn\].*use chmod 0600/, 'nginx -t complains about keys that everybody may read');
like(($t->cli('-t'))[1], qr/FAIL .*everybody may read/, 'so does affiliated -t');
chmod 0600, $t->{keys};
unlike(($t->nginx_test)[1], qr/chmod/, 'and about others it does not');

# Arguments and environment of processes are for everybody to see.
for my $pid ($t->nginx_pid, $t->nginx_workers, $t->{processes}{daemon}) {
    my $seen = $t->slurp("/proc/$pid/cmdline") . $t->slurp("/proc/$pid/environ");
    is(join(' ', find_in("process $pid", $seen)), '', 'no secret is in arguments or environment');
}

done_testing();
