# Each fault point of the module and the daemon, in turn and in the middle of load: the process dies there, or the step
# fails there. Whatever was answered is in PostgreSQL, once, and the books hold. (Builds with fault points are the
# sanitized ones; the others have none.)

BEGIN { $ENV{AFFILIATED_BUILD} = 'asan' }

use Affiliated::Test;
use Affiliated::Load;

my ($CRASH, $ERROR) = (1, 2);

# Names in the order of their numbers.
sub points
{
    my ($file) = @_;

    return `readelf -p aff_faults $file 2>/dev/null` =~ /^\s+\[\s*[0-9a-f]+\]\s+(\S+)$/mg;
}

is_deeply([map { points($_) } "$Affiliated::Test::TOP/build/affiliated", "$Affiliated::Test::TOP/build/ngx_http_affiliate_module.so"], [],
    'what is installed has no fault points');

# Where the next segment can't be made, a call is refused, and comes again.
my $load = Affiliated::Load->begin(clients => 2, may_drop => 1,
    nginx => { spool => 'max_size=64m segment=256k sync=200ms' });
my $t = $load->{t};
$t->daemon_stop;
$t->daemon_start(roles => [qw(clicks conversions holds projection partitions mail webhooks)], conf => { webhooks => { interval => '100ms', timeout => '1s' }, mail => {
    maildir => $t->path('state/mails'), from => 'no-reply@network.example', site => 'https://network.example', interval => '100ms' } });
# Its secret can't be opened: each delivery is a try that failed, without a call.
$t->psql(q{insert into affiliate.endpoint (kind, merchant_id, livemode, url, types, secret)
    select 'webhook', min(merchant_id), false, 'http://hooks.example/', '{order.pending}', 'ff' from affiliate.merchant});
my %file = (nginx => $t->{module}, daemon => $t->_affiliated);
my %points = map { $_ => [points($file{$_})] } keys %file;

for my $name (sort keys %points) {
    cmp_ok(scalar @{ $points{$name} }, '>', 10, "the $name has fault points");
    my %seen;
    is_deeply([grep { $seen{$_}++ } @{ $points{$name} }], [], 'each name is there once');
}

sub control
{
    my ($name, $offset, $value) = @_;
    my $path = $t->path("$name.faults");
    open my $file, '+<:raw', $path or die "$path: $!\n";

    sysseek $file, $offset, 0;
    if (defined $value) {
        syswrite $file, pack 'Q', $value;
        return;
    }
    sysread $file, my $bytes, 8;
    return unpack 'Q', $bytes;
}

# What brings a process to the rarer points.
sub poke
{
    my ($name) = @_;

    if ($name eq 'nginx') {
        $t->kill_worker(($t->nginx_workers)[0]);
    } else {
        $t->redis('DEL', 'aff:epoch', map { ("aff:postgres:clicks:$_", "aff:postgres:conversions:$_") } 0 .. 1);
        $t->_end('daemon', 'KILL');
    }
}

sub bites
{
    my ($name, $number, $mode) = @_;
    my $poked = 0;

    control($name, 8, $mode);
    control($name, 16, 1);
    control($name, 0, $number + 1);
    for my $tick (1 .. 600) {
        # It may die while it starts, too.
        eval { $t->daemon_start } unless $t->alive('daemon');
        if (control($name, 16) != 1) {
            control($name, 0, 0);
            return 1;
        }
        # Nobody under load is mailed anything.
        $t->psql(q{select affiliate.notify(null, 'already_registered', '{"to": "asha@example.com"}')}) if $points{$name}[$number] =~ /^mail/ && $tick % 10 == 1;
        $t->psql(q{select affiliate.emit('order.pending', merchant_id, null, false, 'x', '{}') from affiliate.endpoint}) if $points{$name}[$number] =~ /^webhooks/ && $tick % 10 == 1;
        # A segment that is to be released has to fill first, in a worker that lives so long.
        poke($name) if $tick % 40 == 20 && $points{$name}[$number] ne 'spool.released';
        sleep 0.05;
    }
    control($name, 0, 0);
    return 0;
}

$t->allow_alerts(qr/worker process \d+ exited on signal 9/);
$t->allow_alerts(qr/shared memory zone .* was locked by/);
$t->allow_alerts(qr/fdatasync\(\) of .* failed/);
$load->start;
for my $name (sort keys %points) {
    for my $number (0 .. $#{ $points{$name} }) {
        my $point = $points{$name}[$number];
        next if $point =~ /^payouts\./;    # t/daemon/npi, with batches to hand over

        ok(bites($name, $number, $CRASH), "$name: dies at $point");
        $load->{before}++ if $point eq 'redirect.recorded';
        ok(bites($name, $number, $ERROR), "$name: fails at $point");
    }
}
$load->stop;
$t->daemon_start unless $t->alive('daemon');

is(join("\n", $load->settle), '', 'everything that was answered is there, once, and the books hold');
# A mail that was at work when the daemon died comes again once its lease is over, which takes minutes.
$t->psql(q{update affiliate.notice set next_at = now() where state = 'waiting'});
ok($t->wait_until('mails', sub { $t->value("select string_agg(distinct state, ' ') from affiliate.notice") eq 'sent' }), 'and every mail has been sent');

done_testing();
