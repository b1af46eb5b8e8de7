package Affiliated::Hosts;

# A whole installation that things can be done to: two hosts with nginx, a spool and affiliated each, Redis with a replica,
# PostgreSQL with a streaming standby, and a wire (Affiliated::Wire) between any two of them.
#
#   my $h = Affiliated::Hosts->new(seed => n, dir => '/an/empty/directory', asan => 0|1);    everything is up, the world known
#   $h->world           what Affiliated::Traffic::make_world() made
#   $h->host_ports      [portA, portB]
#   $h->test            an Affiliated::Test for sign(), uuid_of(), ...; its PostgreSQL and Redis are the present ones
#   $h->reader          ->($sql) gives the rows of the present primary, in an array reference;  $h->cli(@arguments)
#   $h->kinds           names of all injections
#   $h->inject($kind, $n)   begins one, unless something that it must not meet is under way: true if it began; what chance
#                       decides about it follows from the seed and $n, its number
#   $h->work($seconds)  lets time pass: what was begun goes on and ends in here
#   $h->heal            waits until what was begun has ended, then until everything is up, connected and in its place
#   $h->clock_offset($host)      seconds that the clock of that host's nginx is ahead
#   $h->counters        {name => n}: metrics of all daemons ("daemon.NAME") and nginx ("nginx.NAME"), over restarts as well as
#                       a look each second and before each kill allows
#   $h->bites           {kind => [how often it began, how often it was seen to have had an effect]}
#   $h->finish($keep)   stops everything; with $keep what was on disks of their own is kept in the directory, too
#
# In the directory: faults.journal with a line "time kind detail" an injection, clocks.journal with "time host seconds" for each
# step of an nginx's clock, and a directory for each machine: a b (hosts), redis1 redis2, pg1 pg2, desk (the operator's).
# Affiliated::Faults has the injections, and says which of them exclude each other.

use strict;
use warnings;

use Affiliated::Faults ();
use Affiliated::Test ();
use Affiliated::Traffic ();
use Affiliated::Wire ();
use IO::Select ();
use IO::Socket::UNIX ();
use JSON::PP ();
use POSIX qw(WNOHANG);
use Time::HiRes qw(sleep time);

my $owner = $$;
my @objects;

# Before the harness' own: disks that were mounted are not its to unmount.
END {
    if ($$ == $owner) {
        my $code = $?;

        eval { $_->finish; 1 } or warn $@ for @objects;
        $? = $code;
    }
}

my $LOGIN = 'affiliated';    # owns nothing: also lets a limit of connections hold for it

my $PG_CONF = <<'END';
wal_level = replica
wal_keep_size = 64MB
hot_standby = on
max_wal_size = 96MB
min_wal_size = 16MB
deadlock_timeout = 200ms
wal_receiver_timeout = 5s
wal_sender_timeout = 5s
wal_retrieve_retry_interval = 200ms
END

sub new
{
    my ($class, %o) = @_;
    my $self = bless { dir => $o{dir}, seed => $o{seed}, asan => $o{asan}, agenda => [], busy => {}, bites => {}, seen => {},
        mounts => [], lines => {}, next_look => 0 }, $class;

    push @objects, $self;
    local $ENV{AFF_TEST_SEED} = $o{seed};
    local $ENV{AFFILIATED_BUILD} = $o{asan} ? 'asan' : '';
    for my $name (qw(desk redis1 redis2 pg1 pg2 a b)) {
        mkdir "$o{dir}/$name" or die "$o{dir}/$name: $!\n";
        $self->{machines}{$name} = Affiliated::Test->new(dir => "$o{dir}/$name");
    }
    chmod 0755, $o{dir};
    $self->{desk} = $self->{machines}{desk};
    $self->{redis} = [@{ $self->{machines} }{qw(redis1 redis2)}];    # the primary first
    $self->{pg} = [@{ $self->{machines} }{qw(pg1 pg2)}];             # the same
    $self->{hosts} = [map { { name => $_, t => $self->{machines}{$_}, consumer => $_, lives => 1, offset => 0 } } qw(a b)];
    open $self->{journal}, '>>', "$o{dir}/faults.journal" or die "faults.journal: $!\n";
    open $self->{clocks}, '>>', "$o{dir}/clocks.journal" or die "clocks.journal: $!\n";
    $_->autoflush(1) for @$self{qw(journal clocks)};
    $self->_start;
    return $self;
}

sub test { return $_[0]{desk} }
sub world { return $_[0]{world} }
sub host_ports { return [map { $_->{t}{port} } @{ $_[0]{hosts} }] }
sub kinds { return Affiliated::Faults::kinds($_[0]) }
sub cli { my $self = shift; return $self->{desk}->cli(@_) }
sub reader { my $self = shift; return sub { return [$self->{desk}->rows(@_)] } }
sub clock_offset { my ($self, $host) = @_; return $self->{hosts}[$host]{offset} }
sub bites { return $_[0]{bites} }
sub wire { return $_[0]{wire} }

# Like wait_until() of the harness, which would be a failed test.
sub await
{
    my ($self, $what, $code, $seconds) = @_;
    my $end = time() + ($seconds || 30);

    until (eval { $code->() }) {
        die "waited for $what\n" . ($@ ? "last: $@" : '') if time() > $end;
        sleep 0.03;
    }
    return 1;
}

# --- start -----------------------------------------------------------------------------------------------------------

sub _start
{
    my $self = shift;

    $self->_string_wires;
    $self->_mount;
    $self->pg_make($_) for @{ $self->{pg} };
    $self->pg_follow($self->{pg}[1]);
    $self->redis_up($self->{redis}[0]);
    $self->redis_up($self->{redis}[1], replica => 1);
    $self->pg_up($self->{pg}[0]);
    $self->pg_up($self->{pg}[1]);
    $self->_move_desk;
    $self->{desk}->psql("create role $LOGIN login; select affiliate.grant_rights('$LOGIN', true)");
    $self->daemon_up($_) for @{ $self->{hosts} };
    $self->{desk}->daemon_conf(conf => $self->_daemon_conf({ name => 'desk', consumer => 'desk' }));
    $self->{world} = Affiliated::Traffic::make_world($self->{desk});
    $self->nginx_up($_) for @{ $self->{hosts} };
    $self->_links_known;
}

# Disks that can be full, where that is allowed: a host's spool, PostgreSQL's data.
sub _mount
{
    my $self = shift;
    my @spools = grep { Affiliated::Faults::mount($self, $_->{t}->path('spool'), 40, 'www-data') } @{ $self->{hosts} };
    my @data = grep { Affiliated::Faults::mount($self, $_->path('pg'), 200, 'postgres') } @{ $self->{pg} };
    my @failed = (@spools == 2 ? () : 'spool_full', @data == 2 ? () : 'pg_no_space');

    $self->{impossible} = \@failed;
    $self->note('impossible', "@failed: nothing may be mounted here") if @failed;
}

# A line for each client of a server.
sub _string_wires
{
    my $self = shift;
    my $redis = $self->{redis}[0]->path('redis/redis.sock');
    my $pg = $self->{pg}[0]->path('pgs/.s.PGSQL.5432');
    my %target = (replication => $redis, standby => $pg, 'redis.desk' => $redis, 'pg.desk' => $pg);

    for my $host (qw(a b)) {
        $target{"redis.$host.nginx"} = $target{"redis.$host.daemon"} = $redis;
        $target{"pg.$host.daemon"} = $pg;
    }
    $self->{lines}{$_} = $self->{desk}->port for sort keys %target;
    $self->{wire} = Affiliated::Wire->new(lines => { map { $_ => [$self->{lines}{$_}, $target{$_}] } keys %target });
    $self->{desk}{processes}{wire} = $self->{wire}->pid;
}

sub lines { my ($self, $pattern) = @_; return grep { $_ =~ $pattern } sort keys %{ $self->{lines} } }

# Everybody finds the present Redis and PostgreSQL, with the configuration that they have.
sub move_wires
{
    my $self = shift;

    $self->{wire}->target($_, $self->{redis}[0]->path('redis/redis.sock')) for $self->lines(qr/^redis|^replication/);
    $self->{wire}->target($_, $self->{pg}[0]->path('pgs/.s.PGSQL.5432')) for $self->lines(qr/^pg|^standby/);
    $self->_move_desk;
}

sub _move_desk
{
    my $self = shift;
    my $t = $self->{desk};

    $t->{pg_socket} = $self->{pg}[0]->path('pgs');
    $t->{redis_socket} = $self->{redis}[0]->path('redis/redis.sock');
    delete $t->{redis_client};
}

# --- Redis -----------------------------------------------------------------------------------------------------------

# Everything it answered is in its file when it is killed: no power fails here.
sub redis_up
{
    my ($self, $t, %o) = @_;
    my @args = qw(--appendonly yes --appendfsync no --repl-diskless-sync-delay 0 --repl-timeout 5 --repl-ping-replica-period 1);

    push @args, '--replicaof', '127.0.0.1', $self->{lines}{replication} if $o{replica};
    $t->redis_start(args => \@args);
}

sub redis_wipe { my ($self, $t) = @_; return $t->run('rm', '-rf', $t->path('redis')) }

sub redis_info
{
    my ($self, $t, $section) = @_;
    return { $t->redis('INFO', $section) =~ /^(\w+):(.*?)\r?$/mg };
}

# --- PostgreSQL --------------------------------------------------------------------------------------------------------

sub pg_make
{
    my ($self, $t) = @_;
    my $data = $t->path('pg');
    my $template = $t->_pg_template;

    mkdir $data, 0700;
    my ($code, $out, $err) = $t->run('cp', '-a', '--reflink=auto', "$template/.", $data);
    die "cp: $err" if $code;
    $t->write("$data/postgresql.auto.conf", $t->slurp("$data/postgresql.auto.conf") . $PG_CONF);
    $t->_own("$data/postgresql.auto.conf", 'postgres');
}

# It will follow whom the wire leads to.
sub pg_follow
{
    my ($self, $t) = @_;
    my $path = $t->path('pg/postgresql.auto.conf');
    my $conf = $t->slurp($path);

    $conf =~ s/^primary_conninfo.*\n//mg;
    $t->write($path, $conf . "primary_conninfo = 'host=127.0.0.1 port=$self->{lines}{standby} user=postgres sslmode=disable'\n");
    $t->write($t->path('pg/standby.signal'), '');
    $t->_own($_, 'postgres') for $path, $t->path('pg/standby.signal');
}

# Tries again: children of a postmaster that was killed take a moment to notice.
sub pg_up
{
    my ($self, $t) = @_;

    $t->{pg_socket} = $t->path('pgs');
    mkdir $t->{pg_socket};
    $t->_own($t->{pg_socket}, 'postgres');
    return $self->await("PostgreSQL in $t->{dir}", sub { $self->pg_try($t) }, 60);
}

# Starts it if it is not there; true once it takes connections.
sub pg_try
{
    my ($self, $t) = @_;

    my @command = ($t->pg_bin . '/postgres', '-D', $t->path('pg'), '-k', $t->{pg_socket});

    $t->_spawn('pg', { user => 'postgres' }, @command) unless $t->alive('pg');
    my ($code) = $t->run($t->pg_bin . '/pg_isready', '-q', '-h', $t->{pg_socket});
    return $code == 0;
}

# The postmaster and all its children.
sub pg_pids
{
    my ($self, $t) = @_;
    my $pid = $t->{processes}{pg} or return;

    return ($pid, Affiliated::Test::_children($pid));
}

# Every commit that the primary has, the standby has, too.
sub standby_caught_up
{
    my $self = shift;
    return $self->{desk}->value("select count(*) from pg_stat_replication where state = 'streaming' "
        . "and application_name = 'walreceiver' and flush_lsn >= pg_current_wal_flush_lsn()");
}

# A copy of the primary is to become its standby; "basebackup" is the process that copies.
sub standby_copy
{
    my ($self, $t) = @_;

    $t->_end('pg', 'KILL') if $t->{processes}{pg};
    $t->run('find', $t->path('pg'), '-mindepth', 1, '-delete');
    return $t->_spawn('basebackup', { user => 'postgres' }, $t->pg_bin . '/pg_basebackup', '-D', $t->path('pg'), '-h',
        $self->{pg}[0]->path('pgs'), '-U', 'postgres', '-c', 'fast', '-X', 'stream', '--no-sync');
}

# --- hosts -----------------------------------------------------------------------------------------------------------

# The environment of a host's nginx or daemon: a file of its own for t/fault/fickle.c, which is copied because those that
# they become may not be able to go where the checkout is.
sub _prepare
{
    my ($self, $host, $whose) = @_;
    my $t = $host->{t};
    my $path = $t->path("fickle.$whose");

    if (!$t->{preload}) {
        my ($code, $out, $err) = $t->run('cp', "$t->{tools}/fickle.so", $t->path('fickle.so'));
        die "cp: $err" if $code;
        $t->{preload} = $t->path('fickle.so');
        chmod 0755, $t->{preload};
    }
    chmod 0666, $t->write($path, "\0" x 4096) unless -e $path;
    $t->{env} = { FICKLE_FILE => $path };
}

# Reads or sets one of the numbers in that file.
sub fickle
{
    my ($self, $host, $whose, $offset, $value) = @_;

    open my $file, '+<:raw', $host->{t}->path("fickle.$whose") or die "fickle: $!\n";
    sysseek $file, $offset, 0;
    if (defined $value) {
        syswrite $file, pack 'q', $value;
        return;
    }
    sysread $file, my $bytes, 8;
    return unpack 'q', $bytes;
}

sub _daemon_conf
{
    my ($self, $host) = @_;
    my $line = $host->{name} eq 'desk' ? '%s.desk' : "%s.$host->{name}.daemon";
    my ($redis, $pg) = map { $self->{lines}{ sprintf $line, $_ } } qw(redis pg);

    return {
        run => { consumer => $host->{consumer}, claim_idle => '10s' },
        postgres => { conninfo => "host=127.0.0.1 port=$pg user=$LOGIN dbname=affiliate sslmode=disable", connect_timeout => '1s',
            lock_timeout => '2s', tcp_user_timeout => '2s' },
        redis => { address => "127.0.0.1:$redis", timeout => '2s', connect_timeout => '1s' },
        conversions => { resolve_interval => '200ms' },
    };
}

sub daemon_up
{
    my ($self, $host) = @_;
    my $t = $host->{t};

    $self->_prepare($host, 'daemon');
    $t->daemon_conf(conf => $self->_daemon_conf($host));
    unlink $t->path('state/status.sock');
    $t->_spawn('daemon', { user => 'postgres', env => $t->_sanitizer_env(0), log => $t->path('daemon.log') },
        $t->_affiliated, '-c', $t->path('affiliated.conf'), 'run');
}

# As a daemon, because "daemon off" can't be upgraded. Whatever comes of it stays in the group of its first master.
sub nginx_up
{
    my ($self, $host) = @_;
    my $t = $host->{t};
    my @kept = map { "env $_;" } qw(LD_PRELOAD FICKLE_FILE AFFILIATED_FAULT_FILE ASAN_OPTIONS UBSAN_OPTIONS);

    $self->_prepare($host, 'nginx');
    $t->nginx_conf(workers => 2, log_level => 'notice', redis => '127.0.0.1:' . $self->{lines}{"redis.$host->{name}.nginx"},
        spool => 'max_size=64m segment=256k sync=200ms', main => join("\n", @kept, 'worker_shutdown_timeout 1s;'),
        http => Affiliated::Traffic::nginx_http() . "affiliate_redis_timeout 500ms;\naffiliate_redis_connect_timeout 500ms;\n"
            . "affiliate_redis_reconnect 50ms 500ms;\n");
    unlink $t->path('nginx.pid');
    $self->await("nginx $host->{name}", sub {
        my ($code, $out, $err) = $t->run({ env => $t->_sanitizer_env(1) }, $t->_nginx_command);
        die "nginx: $out$err" if $code;
        return 1;
    });
    $self->await("nginx.pid of $host->{name}", sub { $t->nginx_pid });
    $t->{processes}{nginx} = $t->nginx_pid;
}

# All that came of this nginx's first master, whether that lives or not.
sub nginx_signal { my ($self, $host, $signal) = @_; return kill $signal, -($host->{t}{processes}{nginx} || return 0) }

sub nginx_lives { my ($self, $host) = @_; my $pid = $host->{t}->nginx_pid; return $pid && !_dead($pid) }

sub _dead
{
    my $pid = shift;

    open my $file, '<', "/proc/$pid/stat" or return 1;
    return (<$file> || '') =~ /^\d+ \(.*\) Z/s;
}

sub nginx_kill
{
    my ($self, $host) = @_;

    $self->look(1);
    $self->nginx_signal($host, 'KILL');
    $self->await("the end of nginx $host->{name}", sub { !$self->nginx_signal($host, 0) });
    $host->{lives}++;
}

sub daemon_kill
{
    my ($self, $host) = @_;

    $self->look(1);
    $host->{t}->_end('daemon', 'KILL');
    $host->{lives}++;
}

# Redis has the links and keys, and nginx answers. Asking for a link would be a click.
sub _links_known
{
    my $self = shift;
    my $world = $self->{world};
    my @names = ((map { "aff:link:$_->{code}" } values %{ $world->{links} }), map { "aff:key:$_->{id}" } @{ $world->{keys} });

    $self->await('the projection', sub { $self->{desk}->redis('EXISTS', 'aff:epoch', @names) == 1 + @names });
    for my $host (@{ $self->{hosts} }) {
        $self->await("nginx of host $host->{name}", sub { $self->_nginx_status($host) });
    }
}

# --- time ------------------------------------------------------------------------------------------------------------

sub note
{
    my ($self, $kind, $detail) = @_;
    printf { $self->{journal} } "%.3f %s %s\n", time(), $kind, $detail;
}

sub set_clock
{
    my ($self, $host, $seconds) = @_;
    my ($index) = grep { $self->{hosts}[$_] == $host } 0, 1;

    $host->{offset} = $seconds;
    $self->fickle($host, 'nginx', 0, int($seconds * 1e9));
    printf { $self->{clocks} } "%.6f %d %.3f\n", time(), $index, $seconds;
}

sub later { my ($self, $seconds, $code) = @_; push @{ $self->{agenda} }, [time() + $seconds, $code] }

sub inject
{
    my ($self, $kind, $n) = @_;
    return Affiliated::Faults::begin($self, $kind, $n);
}

sub work
{
    my ($self, $seconds) = @_;
    my $end = time() + $seconds;

    while (1) {
        my @agenda = sort { $a->[0] <=> $b->[0] } @{ $self->{agenda} };
        if (@agenda && $agenda[0][0] <= time()) {
            my $first = shift @agenda;
            $self->{agenda} = \@agenda;
            $first->[1]->();
            next;
        }
        last if time() >= $end;
        $self->look;
        my $wait = (@agenda && $agenda[0][0] < $end ? $agenda[0][0] : $end) - time();
        sleep($wait > 0.2 ? 0.2 : $wait) if $wait > 0;
    }
}

sub heal
{
    my $self = shift;
    my $end = time() + 150;

    while (@{ $self->{agenda} }) {
        die "these do not end: @{[sort keys %{ $self->{busy} }]}\n" if time() > $end;
        $self->work(0.1);
    }
    for my $host (@{ $self->{hosts} }) {
        die "affiliated of host $host->{name} has ended by itself\n" unless $host->{t}->alive('daemon');
        die "nginx of host $host->{name} has ended by itself\n" unless $self->nginx_lives($host);
    }
    $self->_links_known;
    $self->await('the daemons', sub { 2 == grep { $self->_daemon_works($_) } @{ $self->{hosts} } }, 60);
    $self->await('the replica', sub { $self->redis_info($self->{redis}[1], 'replication')->{master_link_status} eq 'up' });
    $self->await('the standby', sub { $self->standby_caught_up });
    $self->note('heal', 'everything is up');
}

# All its roles are connected.
sub _daemon_works
{
    my ($self, $host) = @_;
    my $status = $self->_daemon_status($host) or return 0;

    return !grep { $_->{state} ne 'up' } values %{ $status->{roles} };
}

# --- counters --------------------------------------------------------------------------------------------------------

sub _daemon_status
{
    my ($self, $host) = @_;
    my $socket = IO::Socket::UNIX->new(Peer => $host->{t}->path('state/status.sock')) or return;
    my $text = '';

    syswrite $socket, 'json';
    while (IO::Select->new($socket)->can_read(0.3)) {
        sysread($socket, $text, 65536, length $text) or last;
    }
    return eval { JSON::PP::decode_json($text) };
}

sub _nginx_status
{
    my ($self, $host) = @_;
    my $r = eval { $host->{t}->http("GET /status HTTP/1.0\r\n\r\n", timeout => 0.3) } or return;

    return eval { JSON::PP::decode_json($r->{body}) };
}

sub _flatten
{
    my ($into, $name, $value) = @_;

    if (ref $value eq 'HASH') {
        _flatten($into, "$name.$_", $value->{$_}) for keys %$value;
    } elsif (defined $value && $value =~ /^\d+$/ && $name =~ /_total\b/) {
        $into->{$name} += $value;
    }
}

# Counters begin anew with each life of whatever counts. What hangs is not asked: that would hang us, too.
sub look
{
    my ($self, $now) = @_;

    return if !$now && time() < $self->{next_look};
    $self->{next_look} = time() + 1;
    for my $host (@{ $self->{hosts} }) {
        my %found;

        _flatten(\%found, 'nginx', $self->_nginx_status($host)) unless $host->{stopped}{nginx};
        my $status = $host->{stopped}{daemon} ? undef : $self->_daemon_status($host);
        _flatten(\%found, 'daemon', $_) for values %{ ($status || {})->{roles} || {} };
        for my $counter (keys %found) {
            my $seen = $self->{seen}{$counter} ||= {};
            my $life = "$host->{name}.$host->{lives}";
            $seen->{$life} = $found{$counter} if $found{$counter} > ($seen->{$life} || 0);
        }
    }
}

sub counters
{
    my $self = shift;
    my %sums;

    $self->look(1);
    for my $counter (keys %{ $self->{seen} }) {
        $sums{$counter} += $_ for values %{ $self->{seen}{$counter} };
    }
    return \%sums;
}

# --- the end ---------------------------------------------------------------------------------------------------------

sub finish
{
    my ($self, $keep) = @_;

    return if $self->{finished}++;
    $_->{t}->_end('daemon', 'TERM', 5) for grep { $_->{t}->alive('daemon') } @{ $self->{hosts} };
    $_->_kill_all for values %{ $self->{machines} };
    Affiliated::Faults::unmount($self, $keep);
}

1;
