# A spool that is full, by its own limit and by the disk's: buyers are sent on, merchants told to come back, nothing that
# was answered is lost, and all is well once there is room.

use Affiliated::Test;

use JSON::PP ();

my $t = Affiliated::Test->new;
my $orders = 0;
my ($link, $key);

sub status { return JSON::PP::decode_json($t->get('/status')->{body}) }

sub conversions
{
    my $n = shift;
    my $click = $t->click_id(merchant => $key->{merchant});

    return $t->call($key, { events => [map {
        { click_id => $click, order_id => 'S-' . ++$orders, status => 'approved', amount => '1', currency => 'NPR', reason => 'x' x 200 }
    } 1 .. $n] }, path => '/v1/conversions/batch');
}

# Fills it through both channels; what was answered.
sub fill
{
    my $name = shift;
    my ($events, $r, %clicks, $without) = (0);

    for (1 .. 60) {
        $r = conversions(400);
        last if $r->{status} != 202;
        $events += 400;
    }
    is($r->{status}, 503, "$name: conversions are refused");
    ok($r->{headers}{'retry-after'}, "$name: come back later");
    is($r->{json}{code}, 'unavailable', "$name: and why");
    for (1 .. 12000) {
        $r = $t->get("/r/$link?sub1=" . 'y' x 100, 'User-Agent', 'Mozilla/5.0 Chrome/126.0.0.0 ' . 'z' x 300, Referer => 'http://x/' . 'r' x 300);
        last if $r->{status} != 302;
        my ($id) = $r->{headers}{location} =~ /affiliate_click_id=(\w+)/;
        if (!$id) {
            $without++;
            last if $without > 20;
            next;
        }
        $clicks{ $t->uuid_of($id) } = 1;
    }
    is($r->{status}, 302, "$name: buyers are sent on");
    cmp_ok($without || 0, '>', 20, "$name: without a click_id that nobody would know");
    my $s = status();
    cmp_ok($s->{dropped_total}{clicks}, '>', 0, "$name: dropped clicks are counted");
    cmp_ok($s->{spool_full}{clicks}, '>', 0, "$name: it is said to be full");
    return ($events, \%clicks);
}

sub heals
{
    my ($name, $events, $clicks) = @_;

    $t->daemon_start;
    ok($t->wait_until("$name: room", sub { conversions(1)->{status} == 202 }, 60), "$name: conversions are taken again");
    ok($t->wait_until("$name: click_ids", sub { $t->get("/r/$link")->{headers}{location} =~ /affiliate_click_id/ }, 30),
        "$name: and buyers have click_ids again");
    ok($t->wait_until("$name: clicks", sub {
        my %there = map { $_->[0] => 1 } $t->rows('select id from affiliate.click');
        return !grep { !$there{$_} } keys %$clicks;
    }, 60), "$name: every click_id given out is in PostgreSQL");
    ok($t->wait_until("$name: drained", sub {
        my $s = status();
        return !grep { $s->{$_}{clicks} + $s->{$_}{conversions} } qw(spool_bytes spool_unsent_records spool_full);
    }, 60), "$name: the spool is drained") or diag($t->get("/status")->{body});
    cmp_ok($t->value("select count(*) from affiliate.conversion where reason like 'x%'"), '>=', $events,
        "$name: and every event that was answered");
    my $lines = () = $t->error_log =~ /spool "[^"]*" is full/g;
    cmp_ok($lines, '<=', 4, "$name: a few words in the log");
    $t->daemon_stop;
}

$t->redis_start;
$t->pg_start;
$t->daemon_start;
my $world = $t->world(url => 'http://127.0.0.1/shop');
($link, $key) = @$world{qw(link key)};
$t->wait_until('the projection', sub { $t->redis('EXISTS', "aff:link:$link", "aff:key:$key->{id}") == 2 });
$t->daemon_stop;

# --- its own limit ---------------------------------------------------------------------------------------------------

{
    $t->nginx_start(spool => 'max_size=2m segment=256k', http => 'affiliate_address_rate off;');
    $t->wait_until('the link', sub { $t->get("/r/$link")->{status} == 302 });
    my ($events, $clicks) = fill('max_size');
    my $size = 0;
    $size += -s $_ for glob $t->path('spool/*');
    cmp_ok($size, '<=', 2 * 1048576, 'max_size: it keeps to it');
    heals('max_size', $events, $clicks);
    $t->nginx_stop;
}

# --- what is written to disk -----------------------------------------------------------------------------------------

{
    $t->nginx_start(spool => 'sync=2s');
    $t->daemon_start;
    $t->wait_until('the link', sub { $t->get("/r/$link")->{status} == 302 });

    # Only if PostgreSQL is quick enough does this show anything; it has ten chances.
    my $spared;
    for (1 .. 10) {
        my $syncs = status()->{spool_syncs_total}{clicks};
        my $start = time;
        $t->get("/r/$link");
        $t->wait_until('its acknowledgement', sub { !status()->{spool_bytes}{clicks} });
        next if time - $start > 1.5;
        sleep 2.5 - (time - $start);
        $spared = status()->{spool_syncs_total}{clicks} - $syncs;
        last;
    }
    is($spared, 0, 'a click that PostgreSQL acknowledges within the sync interval is not written to disk');
    is(conversions(1)->{status}, 202, 'a conversion');
    ok($t->wait_until('its disk', sub { status()->{spool_syncs_total}{conversions} > 0 }), 'is, also when Redis holds it');

    $t->daemon_stop;
    my $syncs = status()->{spool_syncs_total}{clicks};
    $t->get("/r/$link") for 1 .. 3;
    ok($t->wait_until('the disk', sub { status()->{spool_syncs_total}{clicks} > $syncs }),
        'and so is a click that PostgreSQL does not acknowledge');
    $t->nginx_stop;
}

# --- the disk's --------------------------------------------------------------------------------------------------------

SKIP: {
    my $mount = $t->path('small');
    mkdir $mount;
    my ($code) = $> == 0 ? $t->run('mount', '-t', 'tmpfs', '-o', 'size=2m,mode=755', 'tmpfs', $mount) : 1;
    skip 'a small file system takes root', 13 if $code;
    my $user = getpwnam('www-data');
    my $guard = Guard->new($mount);

    mkdir "$mount/spool";
    chown $user, -1, "$mount/spool";
    my $conf = $t->slurp($t->nginx_conf(spool => 'max_size=64m segment=256k', http => 'affiliate_address_rate off;'));
    $conf =~ s/affiliate_spool \S+/affiliate_spool $mount\/spool/;
    $t->write('nginx.conf', $conf);
    $orders += 1_000_000;
    my $before = $t->value("select count(*) from affiliate.conversion where reason like 'x%'");
    $t->nginx_start;
    $t->wait_until('the link', sub { $t->get("/r/$link")->{status} == 302 });
    my ($events, $clicks) = fill('no space');
    heals('no space', $events + $before, $clicks);
    $t->nginx_stop;
    $t->_end('daemon', 'KILL');
    undef $guard;
}

done_testing();

# Unmounts whatever happens.
package Guard;

sub new { my ($class, $path) = @_; return bless { path => $path, pid => $$ }, $class }
sub DESTROY { my $self = shift; system 'umount', '-l', $self->{path} if $self->{pid} == $$ }
