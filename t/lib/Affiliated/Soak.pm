package Affiliated::Soak;

# The whole system under a constant load for as long as one likes, with reloads, deaths and SIGHUPs, and what it takes
# meanwhile: a line of figures every few seconds, and at the end which of them grow. See t/soak/run.
#
#   my $soak = Affiliated::Soak->begin(seconds => 1200, rate => 1000, orders => 100);
#   $soak->run;                       prints the curve
#   my @verdicts = $soak->verdicts;   {title, early, late, slope, grows} of each series
#   my @problems = $soak->settle;     what was answered and is not there, or there and was not answered
#
# begin(%o)    interval => seconds between samples; each => sub { ($sample) } is called after each sample, and may add to it
# series(...)  more of them, as in @SERIES
#
# What would turn over in days must do so in minutes: the replay window is run.replay_window; the inbox is pruned after
# twice as long, by a function of the database's owner; keys of Redis with a time to live are taken away when they have been
# left alone for as long as that window, as Redis would do a day or a week later; and a partition of a day long past is made
# every few seconds, for the daemon to drop.

use strict;
use warnings;

use JSON::PP ();
use List::Util qw(max min sum0);
use Test::More ();
use Time::HiRes qw(sleep time);

use Affiliated::Load;

our @ISA = ('Affiliated::Load');

my ($KIB, $MIB) = (1024, 1024 * 1024);
my ($LINKS, $UNKNOWN, $BURSTS, $BATCH, $VISIT) = (5000, 20_000, 50, 50, 10_000);

# Fewer samples tell nothing: a run goes on until it has as many, however slow the machine.
my $LEAST = 12;

# What a session of the conversions role fills with its work tables, a page at a time, and then uses again (sql/005_ledger.sql),
# with what PostgreSQL needs to keep account of it.
my $TEMP_BUFFERS = 72 * $MIB;

# name, heading of its column, unit (bytes are shown in KiB), what it may grow by: a share of itself and a fixed allowance.
# Those with "lives" have a value for each process, and are looked at within the life of each. A worker's first pages are
# touched over minutes: each of its four segments has a table of 192 KiB for its batches.
our @SERIES = (
    { name => 'master_anon', column => 'master', unit => 'KiB', share => 0.01, allow => 128 * $KIB, title => 'nginx master, anonymous memory' },
    { name => 'master_fds', column => 'fds', share => 0, allow => 1, title => 'nginx master, descriptors' },
    { name => 'workers_pss', column => 'w.PSS', unit => 'KiB', share => 0.05, allow => 2 * $MIB, title => 'nginx, PSS of all processes' },
    { name => 'worker_anon', column => 'w.anon', unit => 'KiB', share => 0.01, allow => $MIB, lives => 1, title => 'nginx worker, anonymous memory in a life' },
    { name => 'worker_fds', column => 'fds', share => 0, allow => 3, lives => 1, title => 'nginx worker, descriptors in a life' },
    { name => 'workers_fds', column => 'all', share => 0, allow => 4, title => 'nginx workers, descriptors' },
    { name => 'processes', column => 'procs', share => 0, allow => 0, title => 'nginx processes' },
    { name => 'cache_used', column => 'cache', unit => 'KiB', share => 0.05, allow => 32 * $KIB, title => 'zone, used by the cache' },
    { name => 'cache_each', column => 'B/entry', share => 0.05, allow => 2, title => 'zone, bytes an entry of the cache' },
    { name => 'daemon_anon', column => 'daemon', unit => 'KiB', share => 0.01, allow => 512 * $KIB, title => 'affiliated, anonymous memory' },
    { name => 'daemon_pss', column => 'd.PSS', unit => 'KiB', share => 0.01, allow => 512 * $KIB, title => 'affiliated, PSS' },
    { name => 'daemon_fds', column => 'fds', share => 0, allow => 1, title => 'affiliated, descriptors' },
    { name => 'redis_memory', column => 'redis', unit => 'KiB', share => 0.05, allow => $MIB, title => 'Redis, used memory' },
    { name => 'redis_clients', column => 'conns', share => 0, allow => 2, title => 'Redis, connections' },
    { name => 'links', column => 'link', share => 0, allow => 0, title => 'aff:link:, keys' },
    { name => 'acked', column => 'acked', share => 0.05, allow => 8, title => 'aff:acked:, keys' },
    { name => 'idem', column => 'idem', share => 0.05, allow => 30, title => 'aff:idem:, keys' },
    { name => 'others', column => 'other', share => 0, allow => 0, title => 'other keys of Redis' },
    { name => 'stream_each', column => 'entries', share => 0.05, allow => 0.2, title => 'aff:clicks: and aff:conversions:, entries a batch of the window' },
    { name => 'spool_disk', column => 'spool', unit => 'KiB', share => 0.05, allow => 2 * $MIB, title => 'spool, bytes on disk' },
    { name => 'spool_files', column => 'files', share => 0, allow => 2, title => 'spool, files' },
    { name => 'spool_bytes', column => 'unack', unit => 'KiB', share => 0.05, allow => $MIB, title => 'spool, not acknowledged' },
    { name => 'pg_connections', column => 'pgconn', share => 0, allow => 1, title => 'PostgreSQL, connections of affiliated' },
    { name => 'backend_memory', column => 'be.mem', unit => 'KiB', share => 0.01, allow => 512 * $KIB, lives => 1, title => 'PostgreSQL, memory of a backend in its life' },
    { name => 'backend_tables', column => 'temp', unit => 'KiB', share => 0, allow => $TEMP_BUFFERS, lives => 1, title => 'PostgreSQL, temp_buffers of it (64 MiB at most)' },
    { name => 'inbox_each', column => 'B/batch', share => 0.1, allow => 32, title => 'inbox, bytes a batch that it has to know' },
    { name => 'dead_letter', column => 'dead', unit => 'KiB', share => 0, allow => 0, title => 'dead_letter, bytes' },
    { name => 'partitions', column => 'parts', share => 0, allow => 1, title => 'partitions of click' },
    { name => 'catalog', column => 'catal', unit => 'KiB', share => 0.05, allow => 512 * $KIB, title => 'catalogs of PostgreSQL, bytes' },
    { name => 'click_each', column => 'B/click', share => 0.02, allow => 2, title => 'bytes a click, with its index' },
    { name => 'order_each', column => 'B/event', share => 0.05, allow => 32, title => 'bytes an event, with order, transfers and indexes' },
);

# --- begin -----------------------------------------------------------------------------------------------------------

sub begin
{
    my ($class, %o) = @_;
    # A killed worker's segments are asked about and sent again within seconds, and what is forgotten sooner comes twice.
    my $window = max(30, int($o{seconds} / 20));
    my $inbox = 2 * $window;
    my $self = $class->SUPER::begin(
        clients => 3,
        # Few threads: of many, one after the other would take its first memory for minutes.
        nginx   => { workers => 2, log_level => 'notice', main => 'thread_pool default threads=2;', spool => 'max_size=256m segment=1m', zone => '4m',
            http => "affiliate_address_rate off;\naccess_log off;\nkeepalive_requests 1000000;" },
        pg     => { conf => "autovacuum_naptime = 5s" },
        daemon => { conf => { run => { replay_window => "${window}s" }, partitions => { interval => '5s', retention => 2 } } });

    $self = bless { %$self, interval => 5, orders => 100, rate => 1000, series => [@SERIES], samples => [], ages => {},
        expired => {}, window => $window, inbox_window => $inbox, clicks_before => $self->{before}, %o }, $class;
    # What Affiliated::Load's clients go by: the one that buys, and those that sell, have a rate each.
    $self->{codes} = [map { "soak$_" } 1 .. $LINKS];
    my $t = $self->{t};
    $t->psql("create or replace function affiliate.inbox_retention() returns interval language sql immutable parallel safe "
        . "return interval '$inbox seconds'");
    $t->psql("select count(*) from generate_series(1, $LINKS) n, affiliate.link_create(jsonb_build_object('campaign', "
        . "$self->{world}{campaign}, 'affiliate', $self->{world}{affiliate}, 'url', 'http://127.0.0.1/shop/' || n, 'code', 'soak' || n))");
    $t->wait_until('the links', sub { $t->redis('EXISTS', "aff:link:soak1", "aff:link:soak$LINKS") == 2 }, 60)
        or die "the links do not come up\n";
    return $self;
}

sub series { my ($self, @more) = @_; push @{ $self->{series} }, @more; return $self }

# --- load ------------------------------------------------------------------------------------------------------------

# The first client buys, the others sell.
sub _client
{
    my $self = shift;
    my $sells = $self->{n} !~ /-1$/;
    my $period = $sells ? $BATCH * ($self->{clients} - 1) / $self->{orders} : 1 / $BURSTS;
    my $next = time() + rand($period);
    my $stop = $self->{t}->path("stop-$self->{round}");

    until (-e $stop) {
        my $left = $next - time();
        # Who is late after a pause of the whole machine does not make up for it in one go.
        $left > -1 ? ($next += $period) : ($next = time() + $period);
        sleep $left if $left > 0;
        $sells ? $self->_sell : $self->_buy(int($self->{rate} / $BURSTS + rand(1)));
    }
    print { $self->{file} } "$_\t$self->{count_of}{$_}\n" for sort keys %{ $self->{count_of} };
}

# Of a soak only what went wrong is written down, and how often all the rest was.
sub _note
{
    my ($self, $line) = @_;
    my ($what) = $line =~ /^(\w+)/;

    return print { $self->{file} } "$line\n" if $what eq 'odd';
    $self->{count_of}{$what}++;
}

# So many requests behind one another: most for a link, by a person or a bot, some for one that is not there.
sub _buy
{
    my ($self, $n) = @_;
    my $connection = $self->{buying} ||= eval { $self->{t}->keepalive };
    my @requests = map {
        my $code = rand() < 0.1 ? 'none' . int(rand($UNKNOWN)) : $self->{codes}[rand $LINKS];
        my $agent = rand() < 0.05 ? 'Googlebot/2.1' : 'Mozilla/5.0 (Linux; Android ' . int(9 + rand 6) . ') AppleWebKit/537.36 '
            . '(KHTML, like Gecko) Chrome/' . int(100 + rand 40) . '.0.0.0 Mobile Safari/537.36';
        my $path = "/r/$code" . (rand() < 0.3 ? '?sub1=s' . int(rand(1000)) : '');
        "GET $path HTTP/1.1\r\nHost: localhost\r\nUser-Agent: $agent\r\n\r\n";
    } 1 .. $n;
    my $sent = $connection && $connection->send(join '', @requests);

    for my $i (1 .. $n) {
        my $r = $sent ? $connection->response(timeout => 15) : { status => 0 };

        if ($r->{status} == 0) {
            $self->{count_of}{lost} += $n - $i + 1;
            $connection->close if $connection;
            return delete $self->{buying};
        }
        $self->_note($r->{status} == 302 ? 'recorded' : $r->{status} == 404 ? 'unknown' : $r->{status} == 503 ? 'refused' : "odd\tclick: $r->{status}");
    }
    # For as long as a connection lives, nginx keeps a little of each buffer that requests behind one another needed.
    if (($self->{bought} += $n) >= $VISIT) {
        $connection->close;
        delete @$self{qw(buying bought)};
    }
}

# Orders of new clicks: reported, approved, some told again, some given back; and one by itself.
sub _sell
{
    my $self = shift;
    my (@clicks, @orders);

    for (1 .. $BATCH) {
        $self->{world}{link} = $self->{codes}[rand $LINKS];
        push @clicks, $self->_click || ();
    }
    @orders = map { { click_id => $_, order_id => "O-$self->{n}-" . ++$self->{count}, currency => 'NPR',
        amount => 100 + int(rand 9900) . '.00' } } @clicks;
    my $single = pop @orders or return;
    $self->_call({ %$single, status => 'approved' });
    return unless @orders > 1;
    $self->_call(map { { %$_, status => 'pending' } } @orders);
    $self->_call(map { { %$_, status => 'approved' } } @orders);
    # The same events once more, under another key.
    $self->_call(map { { %$_, status => 'approved' } } @orders) if rand() < 0.1;
    my @back = grep { rand() < 0.1 } @orders;
    $self->_call(map { { %$_, status => 'refunded', amount => '10.00', refund_id => "R-$_->{order_id}" } } @back) if @back > 1;
}

# --- samples ---------------------------------------------------------------------------------------------------------

sub _memory
{
    my ($self, $pid) = @_;
    my $text = $self->{t}->slurp("/proc/$pid/smaps_rollup");
    my ($pss) = $text =~ /^Pss:\s+(\d+)/m;
    my ($anon) = $text =~ /^Anonymous:\s+(\d+)/m;

    return (($pss || 0) * $KIB, ($anon || 0) * $KIB);
}

sub _fds { my ($self, $pid) = @_; my @fds = glob "/proc/$pid/fd/*"; return scalar @fds }

sub _processes
{
    my ($self, $s) = @_;
    my $t = $self->{t};
    my $master = $t->nginx_pid;
    my @all = Affiliated::Test::_children($master);

    ($s->{workers_pss}, $s->{master_anon}) = $self->_memory($master);
    $s->{master_fds} = $self->_fds($master);
    $s->{processes} = 1 + @all;
    for my $pid (@all) {
        my ($pss, $anon) = $self->_memory($pid);
        my $fds = $self->_fds($pid);
        $s->{workers_pss} += $pss;
        $s->{workers_fds} += $fds;
        next unless $t->slurp("/proc/$pid/cmdline") =~ /^nginx: worker process(?! is shutting)/;
        $s->{worker_anon}{$pid} = $anon;
        $s->{worker_fds}{$pid} = $fds;
    }
    my $daemon = $t->{processes}{daemon};
    ($s->{daemon_pss}, $s->{daemon_anon}) = $self->_memory($daemon);
    $s->{daemon_fds} = $self->_fds($daemon);
}

# Counts keys by prefix. Of those with a time to live, the ones that were left alone for the window go now: the longest
# time to live there is, is the whole of it.
my $SCAN = <<'END';
local count, gone, longest, found, cursor = {}, 0, {}, {}, '0'
repeat
    local page = redis.call('SCAN', cursor, 'COUNT', 1000)
    cursor = page[1]
    for _, key in ipairs(page[2]) do
        local prefix = string.match(key, '^aff:(%a+):') or 'other'
        if prefix == 'acked' or prefix == 'idem' then
            local left = redis.call('TTL', key)
            longest[prefix] = math.max(longest[prefix] or 0, left)
            found[#found + 1] = {key, prefix, left}
        end
        count[prefix] = (count[prefix] or 0) + 1
    end
until cursor == '0'
for _, f in ipairs(found) do
    if f[3] < longest[f[2]] - tonumber(ARGV[1]) then
        redis.call('DEL', f[1])
        count[f[2] .. '_expired'] = (count[f[2] .. '_expired'] or 0) + 1
    end
end
for prefix, left in pairs(longest) do
    count[prefix .. '_ttl'] = left
    for _, f in ipairs(found) do
        if f[2] == prefix then
            count[prefix .. '_bytes'] = redis.call('MEMORY', 'USAGE', f[1]) or 0
        end
    end
end
local out = {}
for name, n in pairs(count) do
    out[#out + 1] = name
    out[#out + 1] = n
end
return out
END

sub _redis
{
    my ($self, $s) = @_;
    my $t = $self->{t};
    my %info = map { /^([^#:]+):(.*?)\r?$/ ? ($1, $2) : () } map { split /\n/, $t->redis('INFO', $_) } qw(memory clients);
    my %n = @{ $t->redis('EVAL', $SCAN, 0, $self->{window}) };

    $s->{redis_memory} = $info{used_memory};
    $s->{redis_clients} = $info{connected_clients};
    $s->{$_->[0]} = delete $n{ $_->[1] } || 0 for ['links', 'link'], ['acked', 'acked'], ['idem', 'idem'];
    for my $prefix (qw(acked idem)) {
        $self->{expired}{$prefix} += delete $n{"${prefix}_expired"} || 0;
        for my $what (qw(ttl bytes)) {
            my $value = delete $n{"${prefix}_$what"};
            $self->{key}{$prefix}{$what} = max($value || 0, $self->{key}{$prefix}{$what} || 0);
        }
    }
    $s->{others} = sum0(values %n);
    $s->{"${_}_length"} = $t->redis('XLEN', "aff:${_}:0") for qw(clicks conversions);
}

sub _spool
{
    my ($self, $s, $status) = @_;
    my @files = glob $self->{t}->path('spool/*');

    $s->{spool_files} = @files;
    $s->{spool_disk} = 512 * sum0 map { (stat $_)[12] || 0 } @files;
    $s->{spool_bytes} = sum0 values %{ $status->{spool_bytes} };
}

my $SQL = <<'END';
with relation as (
    select c.oid, c.relname, pg_total_relation_size(c.oid) as bytes, coalesce(s.n_tup_ins, 0) as rows,
           exists (select from pg_inherits i where i.inhrelid = c.oid and i.inhparent = 'affiliate.click'::regclass) as leaf
      from pg_class c
      left join pg_stat_all_tables s on s.relid = c.oid
     where c.relnamespace = 'affiliate'::regnamespace
       and c.relkind = 'r'
), backend as (
    select pid, pid || '=' || replace(application_name, ' ', '_') as name
      from pg_stat_activity
     where backend_type = 'client backend'
       and pid <> pg_backend_pid()
)
select (select count(*) from backend), (select coalesce(string_agg(name, ' '), '') from backend),
       sum(bytes) filter (where leaf), sum(rows) filter (where leaf), count(*) filter (where leaf),
       sum(bytes) filter (where relname = 'inbox'), sum(rows) filter (where relname = 'inbox'),
       sum(bytes) filter (where relname = 'dead_letter'),
       sum(bytes) filter (where not leaf and relname not in ('inbox', 'dead_letter', 'link', 'link_code')),
       sum(rows) filter (where relname = 'conversion'),
       (select sum(pg_total_relation_size(oid)) from pg_class where relnamespace = 'pg_catalog'::regnamespace and relkind = 'r')
  from relation
END

sub _postgres
{
    my ($self, $s) = @_;
    my ($backends, $click_bytes, $click_rows, $book_bytes, $events);
    my ($row) = $self->{t}->rows($SQL);

    ($s->{pg_connections}, $backends, $click_bytes, $click_rows, $s->{partitions}, $s->{inbox}, $s->{batches}, $s->{dead_letter},
        $book_bytes, $events, $s->{catalog}) = @$row;
    $self->_backends($s, split / /, $backends);
    $s->{click_each} = $click_rows ? $click_bytes / $click_rows : 0;
    $s->{order_each} = $events ? $book_bytes / $events : 0;
    $s->{stream_each} = ($s->{clicks_length} + $s->{conversions_length}) / $self->_batches($s, $self->{window});
    $s->{inbox_each} = $s->{inbox} / $self->_batches($s, $self->{inbox_window});
}

# Batches of the last so many seconds. How many there are depends on how busy the machine is, and what is kept of them with it.
sub _batches
{
    my ($self, $s, $seconds) = @_;
    my ($before) = grep { $_->{at} >= $s->{at} - $seconds } @{ $self->{samples} };

    return max(1, $s->{batches} - ($before ? $before->{batches} : 0));
}

# A backend writes what it has into the log, when it comes to that: what is read here it was asked for the last time.
sub _backends
{
    my ($self, $s, @backends) = @_;
    my %name = map { /^(\d+)=(.*)/ ? ($1 => "$2 $1") : () } @backends;

    open my $log, '<', $self->{t}->path('pg.log') or die "pg.log: $!\n";
    seek $log, $self->{log_read} || 0, 0;
    while (my $line = <$log>) {
        last unless $line =~ /\n\z/;
        $self->{log_read} = tell $log;
        if ($line =~ /\[(\d+)\] LOG:  level: 1; LocalBufferContext: (\d+) total/ && $name{$1}) {
            $s->{backend_tables}{ $name{$1} } = $2;
        } elsif ($line =~ /\[(\d+)\] LOG:  Grand total: (\d+) bytes/ && $name{$1}) {
            $s->{backend_memory}{ $name{$1} } = $2 - ($s->{backend_tables}{ $name{$1} } || 0);
        }
    }
    $self->{t}->psql(join '', map { "select pg_log_backend_memory_contexts($_);\n" } keys %name);
}

sub sample
{
    my $self = shift;
    my %s = (at => time() - $self->{start});
    my $status = JSON::PP::decode_json($self->{t}->get('/status')->{body});

    $s{clicks} = $status->{recorded_total}{clicks};
    $s{conversions} = $status->{recorded_total}{conversions};
    # The cache has all of the zone that is not for tables of a fixed size: what leaks there leaks in the cache.
    my $entries = sum0 @$status{qw(cache_links cache_keys cache_negatives)};
    $s{cache_used} = $status->{cache_used_bytes};
    $s{cache_each} = $entries ? $s{cache_used} / $entries : 0;
    $self->_processes(\%s);
    $self->_redis(\%s);
    $self->_spool(\%s, $status);
    $self->_postgres(\%s);
    $self->{each}->(\%s) if $self->{each};
    push @{ $self->{samples} }, \%s;
    return \%s;
}

# --- the run ---------------------------------------------------------------------------------------------------------

# A day long past, whose partition has become a retention's case.
sub _old_day
{
    my $self = shift;
    my $ago = 10 + ++$self->{old_days};

    $self->{t}->psql(<<"END");
select affiliate.create_click_partition(((now() at time zone 'UTC')::date - $ago));
insert into affiliate.click (id, merchant_id, link_id, campaign_id, affiliate_id, livemode, verdict, reasons)
select (lpad(to_hex((extract(epoch from (now() at time zone 'UTC')::date - $ago) * 1000)::bigint), 12, '0') || '70008000'
        || lpad(to_hex(n), 12, '0'))::uuid, 1, 1, 1, 1, true, 0, 0
  from generate_series(1, 500) n
END
}

# What happens now and then, and how often: name, mean seconds, code, until when. What ends a process' life ends before the run does, so
# that there are long lives, too.
sub _events
{
    my $self = shift;
    my $t = $self->{t};
    my $seconds = $self->{seconds};
    my $end = $self->{start} + $seconds;
    my $lives_end = $self->{start} + 0.6 * $seconds;

    return (['reload', max(3, $seconds / 15), sub { $t->nginx_reload }, $lives_end],
        ['worker killed', max(4, $seconds / 8), sub { $self->_kill }, $lives_end],
        ['SIGHUP', max(2, $seconds / 15), sub { $t->daemon_signal('HUP') }, $lives_end],
        ['link changed', max(0.5, $seconds / 600), sub {
            $t->psql("update affiliate.link set url = 'http://127.0.0.1/shop/' || $self->{count_of}{'link changed'} "
                . "where code = 'soak" . (1 + int rand $LINKS) . "'");
        }, $end],
        ['old day', max(2, $seconds / 120), sub { $self->_old_day }, $end]);
}

sub _kill
{
    my $self = shift;
    my @workers = $self->{t}->nginx_workers;

    $self->{t}->kill_worker($workers[rand @workers]) if @workers;
}

sub run
{
    my $self = shift;
    my $end = ($self->{start} = time()) + $self->{seconds};
    my $sample = $self->{start};
    my @events = map { { name => $_->[0], every => $_->[1], do => $_->[2], until => $_->[3] } } $self->_events;

    $_->{next} = $self->{start} + $_->{every} * (0.25 + rand(0.5)) for @events;
    $self->start;
    while ((my $now = time()) < $end || @{ $self->{samples} } < $LEAST) {
        for my $event (grep { $_->{next} <= $now } @events) {
            $self->{count_of}{ $event->{name} }++;
            $event->{do}->();
            $event->{next} = $now + $event->{every} * (0.5 + rand);
        }
        @events = grep { $_->{next} < $_->{until} } @events;
        if ($now >= $sample) {
            $self->_print($self->sample);
            $sample += $self->{interval};
        }
        my $next = min($sample, map { $_->{next} } @events);
        sleep(max(0.01, $next - time()));
    }
    $self->stop;
}

sub _shown
{
    my ($series, $value) = @_;

    $value = max(values %$value) if ref $value;
    return '-' unless defined $value;
    return sprintf '%.0f', $series->{unit} ? $value / $KIB : $value;
}

sub _print
{
    my ($self, $s) = @_;
    my @series = @{ $self->{series} };
    my $before = @{ $self->{samples} } > 1 ? $self->{samples}[-2] : $s;
    my $took = $s->{at} - $before->{at} || 1;

    Test::More::note(sprintf '%6s %6s %6s' . ' %7s' x @series, 's', 'clk/s', 'evt/s', map { $_->{column} } @series)
        if (@{ $self->{samples} } - 1) % 40 == 0;
    Test::More::note(sprintf '%6.0f %6.0f %6.0f' . ' %7s' x @series, $s->{at}, ($s->{clicks} - $before->{clicks}) / $took,
        ($s->{conversions} - $before->{conversions}) / $took, map { _shown($_, $s->{ $_->{name} }) } @series);
}

# --- verdicts --------------------------------------------------------------------------------------------------------

sub median
{
    my @sorted = sort { $a <=> $b } @_;
    return @sorted % 2 ? $sorted[ $#sorted / 2 ] : ($sorted[ @sorted / 2 ] + $sorted[ @sorted / 2 - 1 ]) / 2;
}

# [at, value] ...: the median of the slopes between every two of them (Theil, Sen), in units an hour. A long series is
# thinned out: two hundred points tell a slope as well.
sub slope
{
    my @points = @_;
    my $step = max(1, @points / 200);
    my @thin = map { $points[$_ * $step] } 0 .. int($#points / $step);
    my @slopes;

    for my $i (0 .. $#thin) {
        for my $j ($i + 1 .. $#thin) {
            my $took = $thin[$j][0] - $thin[$i][0] or next;
            push @slopes, ($thin[$j][1] - $thin[$i][1]) / $took * 3600;
        }
    }
    return @slopes ? median(@slopes) : 0;
}

# What the second quarter's median was, and what the last one's is: apart, a step of start-up or a peak between do not
# matter, and a drift does however slow. undef if there is too little to tell.
sub verdict
{
    my ($series, @points) = @_;
    my $n = @points;

    return undef if $n < $LEAST;
    my $early = median(map { $_->[1] } @points[$n / 4 .. $n / 2 - 1]);
    my $late = median(map { $_->[1] } @points[3 * $n / 4 .. $n - 1]);

    return { title => $series->{title}, early => $early, late => $late, slope => slope(@points[$n / 2 .. $n - 1]),
        grows => $late - $early > $series->{share} * $early + $series->{allow} ? 1 : 0 };
}

# Of the long lives, what the middle one of them did; where processes are of several kinds ("kind pid"), of the kind that
# grew the most.
sub _lives
{
    my ($series, @samples) = @_;
    my (%points, %kinds);

    for my $s (@samples) {
        push @{ $points{$_} }, [$s->{at}, $s->{ $series->{name} }{$_}] for keys %{ $s->{ $series->{name} } || {} };
    }
    for my $life (sort keys %points) {
        my ($kind) = $life =~ /^(?:(.*) )?\d+$/;
        push @{ $kinds{ $kind || '' } }, $points{$life};
    }
    my $grown = sub { my $v = shift; return $v->{late} - $v->{early} };
    my @worst;
    for my $kind (sort keys %kinds) {
        my $longest = max(map { scalar @$_ } @{ $kinds{$kind} });
        my @verdicts = sort { $grown->($a) <=> $grown->($b) } grep { $_ } map { verdict($series, @$_) }
            grep { @$_ >= $longest / 2 } @{ $kinds{$kind} };
        push @worst, { %{ $verdicts[$#verdicts / 2] }, lives => scalar @verdicts, kind => $kind } if @verdicts;
    }
    @worst = sort { $grown->($b) <=> $grown->($a) } @worst;
    return $worst[0];
}

sub verdicts
{
    my $self = shift;
    my @samples = @{ $self->{samples} };

    return map {
        my $series = $_;
        my $verdict = $series->{lives} ? _lives($series, @samples)
            : verdict($series, map { [$_->{at}, $_->{ $series->{name} }] } @samples);
        $verdict ? { %$verdict, series => $series } : { title => $series->{title}, series => $series, grows => undef };
    } @{ $self->{series} };
}

# --- the end ---------------------------------------------------------------------------------------------------------

sub journal
{
    my $self = shift;
    my $t = $self->{t};
    my %j = (odd => [], map { $_ => 0 } qw(click recorded unknown lost refused dropped event));

    for my $path (glob $t->path('load-*.journal')) {
        for my $line (split /\n/, $t->slurp($path)) {
            my ($what, $rest) = split /\t/, $line, 2;
            push(@{ $j{odd} }, $rest), next if $what eq 'odd';
            $j{$what} += $rest if $what ne 'end';
        }
    }
    return \%j;
}

# Only counts can be compared of so many.
sub problems
{
    my $self = shift;
    my $t = $self->{t};
    my $j = $self->journal;
    my @problems = map { "odd: $_" } @{ $j->{odd} };
    my $clicks = $t->value("select count(*) from affiliate.click where id >= affiliate.day_bound((now() at time zone 'UTC')::date - 2)");
    my $told = $self->{clicks_before} + $j->{click} + $j->{recorded};
    my $events = $t->value('select count(*) from affiliate.conversion');

    push @problems, "$clicks clicks, $told were answered and $j->{lost} answers were lost" if $clicks < $told || $clicks > $told + $j->{lost};
    push @problems, "$events events, $j->{event} were answered" if $events != $j->{event};
    push @problems, $self->_spool_problems;
    return @problems;
}

sub settle
{
    my ($self, $seconds) = @_;
    my $end = time() + ($seconds || 40);
    my @problems;

    1 while (@problems = $self->problems) && time() < $end && sleep 0.5;
    my ($code, $out, $err) = $self->{t}->cli('audit');
    push @problems, "audit: $code $out$err" if $code;
    ($code, $out, $err) = $self->{t}->cli('dead-letters', 'list', '--json');
    push @problems, "dead letters: $code $out$err" if $code || $out ne '';
    splice @problems, 12 if @problems > 12;
    return @problems;
}

1;
