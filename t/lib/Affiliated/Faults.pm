package Affiliated::Faults;

# What can be done to Affiliated::Hosts: a table of injections, and the rules about which of them may meet.
#
# An injection is a list of steps, each so many seconds after the one before; a step that returns a number is to be called
# again after so many seconds. Until its last step it holds what it works on (`needs`), and nothing else that needs the same
# begins. %h stands for one of the hosts. `bit` counts what is seen to have had an effect.
#
# Everything may meet everything else, with these exceptions:
#
#   - Two injections on the same process, line, disk or clock.
#   - "loss": Redis losing data, and PostgreSQL losing commits that were acknowledged. What PostgreSQL lost comes back from
#     Redis, what Redis lost from the spools, which PostgreSQL's commits have released; nobody promises to survive both. From the
#     standby's last commit until what it lacks was replayed, Redis keeps its data. After Redis lost some, PostgreSQL keeps its
#     commits until every daemon has run free for a while, so that none holds a batch that it read before and commits after. Redis
#     without memory counts as a loss: the daemons then drop what they keep for a replay.
#
# A damaged frame in a spool, and what follows it there, is lost to whoever has no other copy: the journal names these records.

use strict;
use warnings;

use Affiliated::Test ();
use JSON::PP ();
use Time::HiRes qw(sleep time);

my $SETTLED = 2;          # seconds that daemons run free before a loss in Redis is over
my $PATIENCE = 120;       # seconds for a step that is called again and again
my $LAG_MS = 30;          # of Redis' replica

sub _span { my ($from, $to) = @_; return $from + rand($to - $from) }

# --- nginx -----------------------------------------------------------------------------------------------------------

sub _nginx_kill
{
    my ($h, $x) = @_;

    $h->nginx_kill($x->{host});
    $x->bit(1);
    return ('master and workers', _span(0.05, 1.5) => sub { $h->nginx_up($x->{host}); return });
}

# Its workers go on without it, until somebody sees that.
sub _nginx_master_kill
{
    my ($h, $x) = @_;

    kill 'KILL', $x->{host}{t}->nginx_pid;
    return ('its workers live on', _span(0.1, 1) => sub {
        $x->bit($h->nginx_signal($x->{host}, 0));
        $h->nginx_kill($x->{host});
        $h->nginx_up($x->{host});
        return;
    });
}

sub _a_worker { my $host = shift; my @workers = $host->{t}->nginx_workers; return $workers[rand @workers] }

sub _worker_signal
{
    my ($signal) = @_;

    return sub {
        my ($h, $x) = @_;
        my $pid = _a_worker($x->{host}) or return 'there is none';

        $x->bit(kill $signal, $pid);
        return ("worker $pid", 0.3 => sub { return });
    };
}

sub _worker_stop
{
    my ($h, $x) = @_;
    my $pid = _a_worker($x->{host}) or return 'there is none';

    $x->bit(kill 'STOP', $pid);
    $x->{host}{stopped}{nginx}++;
    return ("worker $pid", _span(0.5, 4) => sub { kill 'CONT', $pid; $x->{host}{stopped}{nginx}--; return });
}

sub _nginx_stop
{
    my ($h, $x) = @_;

    $x->bit($h->nginx_signal($x->{host}, 'STOP'));
    $x->{host}{stopped}{nginx}++;
    return ('all of it', _span(0.5, 4) => sub { $h->nginx_signal($x->{host}, 'CONT'); $x->{host}{stopped}{nginx}--; return });
}

# Other workers than those that are there now.
sub _new_workers
{
    my ($host, $old) = @_;
    my %old = map { $_ => 1 } @$old;
    my @now = $host->{t}->nginx_workers;

    return @now && !grep { $old{$_} } @now;
}

sub _nginx_reload
{
    my ($h, $x) = @_;
    my @old = $x->{host}{t}->nginx_workers;

    kill 'HUP', $x->{host}{t}->nginx_pid;
    return ("workers @old", 0.1 => sub { return 0.05 unless _new_workers($x->{host}, \@old); $x->bit(1); return });
}

# Old workers wait for a Redis that does not answer, until they wait no more.
sub _nginx_shutdown_timeout
{
    my ($h, $x) = @_;
    my $line = "redis.$x->{host}{name}.nginx";
    my @old = $x->{host}{t}->nginx_workers;

    $h->wire->mode($line, 'hole');
    return ("workers @old", 0.05 => sub { kill 'HUP', $x->{host}{t}->nginx_pid; return },
        1.5 => sub { $x->bit(_new_workers($x->{host}, \@old)); _line_good($h, $line); return },
        0.1 => sub { return _new_workers($x->{host}, \@old) ? undef : 0.05 });
}

sub _nginx_upgrade
{
    my ($h, $x) = @_;
    my $t = $x->{host}{t};
    my $old = $t->nginx_pid;

    kill 'USR2', $old;
    return ("master $old", 0.1 => sub {
        my $now = $t->nginx_pid;
        return 0.05 unless $now && $now ne $old && (my @workers = $t->nginx_workers($now));
        kill 'QUIT', $old;
        return;
    }, 0.1 => sub { return 0.05 unless Affiliated::Hosts::_dead($old); $x->bit(1); return });
}

# --- affiliated ------------------------------------------------------------------------------------------------------

sub _daemon_kill
{
    my ($h, $x) = @_;

    $h->daemon_kill($x->{host});
    $x->bit(1);
    return ('', _span(0.05, 2) => sub { $h->daemon_up($x->{host}); return });
}

# Another takes its place, by another name: what the first had read is left for whoever claims it.
sub _daemon_replaced
{
    my ($h, $x) = @_;
    my $host = $x->{host};

    $h->daemon_kill($host);
    $host->{consumer} = $host->{name} . $host->{lives};
    $x->bit(1);
    return ("by $host->{consumer}", _span(0.05, 1) => sub { $h->daemon_up($host); return });
}

sub _daemon_restart
{
    my ($h, $x) = @_;

    $h->look(1);
    $x->bit($x->{host}{t}->_end('daemon', 'TERM', 20));
    $x->{host}{lives}++;
    $h->daemon_up($x->{host});
    return ('', 0.1 => sub { return });
}

sub _daemon_reload
{
    my ($h, $x) = @_;
    my $t = $x->{host}{t};
    my $told = sub { return scalar(() = $t->daemon_log =~ /new configuration in force/g) };
    my $before = $told->();

    $t->daemon_signal('HUP');
    return ('', 1 => sub { $x->bit($told->() > $before); return });
}

sub _daemon_stop
{
    my (@span) = @_;

    return sub {
        my ($h, $x) = @_;
        my $pid = $x->{host}{t}{processes}{daemon};
        my $seconds = _span(@span);

        $x->bit(kill 'STOP', $pid);
        $x->{host}{stopped}{daemon}++;
        return (sprintf('%.1f s', $seconds), $seconds => sub { kill 'CONT', $pid; $x->{host}{stopped}{daemon}--; return });
    };
}

# --- Redis -----------------------------------------------------------------------------------------------------------

sub _redis_restart
{
    my ($h, $x) = @_;
    my $t = $h->{redis}[0];

    $x->bit($t->redis_kill || 1);
    return ('with its data', _span(0, 1.5) => sub { $h->redis_up($t); return });
}

sub _redis_wipe
{
    my ($h, $x) = @_;
    my $t = $h->{redis}[0];

    $x->bit($t->redis('DBSIZE'));
    $t->redis_kill;
    $h->redis_wipe($t);
    return ('restarted without its data', _span(0, 1.5) => sub { $h->redis_up($t); return }, _loss_ends($h));
}

sub _redis_flushall
{
    my ($h, $x) = @_;

    $x->bit($h->{redis}[0]->redis('DBSIZE'));
    $h->{redis}[0]->redis('FLUSHALL');
    return ('', _loss_ends($h));
}

# Steps until a loss in Redis is over: each daemon is free to go on, and had the time to.
sub _loss_ends
{
    my $h = shift;
    my $free;

    return (0.1 => sub {
        my @held = grep { /^daemon|^redis|^pg|^line\..*daemon/ && !$h->{busy}{$_}{loss} } keys %{ $h->{busy} };
        $free = @held ? undef : $free || time();
        return $free && time() - $free > $SETTLED ? undef : 0.1;
    });
}

# The replica takes over, without what came in the last moments.
sub _redis_failover
{
    my ($h, $x) = @_;
    my ($old, $new) = @{ $h->{redis} };
    my $lost;

    $h->wire->mode('replication', 'hole');
    return ('', _span(0.05, 0.4) => sub {
        my ($ahead, $behind) = map { $_->redis('ROLE')->[$_ == $old ? 1 : 4] } $old, $new;
        $lost = $ahead - $behind;
        $x->bit($lost > 0);
        $old->redis_kill;
        $h->note($x->{kind}, "$lost bytes are lost");
        return;
    }, _span(0, 0.5) => sub {
        $new->redis('REPLICAOF', 'NO', 'ONE');
        $h->{redis} = [$new, $old];
        $h->move_wires;
        _line_good($h, 'replication');
        $h->redis_wipe($old);
        $h->redis_up($old, replica => 1);
        return;
    }, _loss_ends($h));
}

sub _errors
{
    my ($t, $code) = @_;
    return $t->redis('INFO', 'errorstats') =~ /^errorstat_$code:count=(\d+)/m ? $1 : 0;
}

sub _redis_oom
{
    my ($h, $x) = @_;
    my $t = $h->{redis}[0];
    my $before = _errors($t, 'OOM');

    $t->redis(qw(CONFIG SET maxmemory), $h->redis_info($t, 'memory')->{used_memory} - 1000);
    return ('', _span(0.5, 3) => sub {
        $x->bit(_errors($t, 'OOM') - $before);
        $t->redis(qw(CONFIG SET maxmemory 0));
        return;
    }, _loss_ends($h));
}

# The wires lead to the replica for a while.
sub _redis_readonly
{
    my ($h, $x) = @_;
    my ($primary, $replica) = @{ $h->{redis} };
    my $before = $h->redis_info($replica, 'stats')->{total_connections_received};

    $h->wire->target($_, $replica->path('redis/redis.sock')) for $h->lines(qr/^redis/);
    return ('', _span(0.5, 3) => sub {
        $x->bit($h->redis_info($replica, 'stats')->{total_connections_received} - $before);
        $h->wire->target($_, $primary->path('redis/redis.sock')) for $h->lines(qr/^redis/);
        return;
    });
}

# --- PostgreSQL ------------------------------------------------------------------------------------------------------

sub _pg_back { my ($h, $t) = @_; return (_span(0, 1.5) => sub { return $h->pg_try($t) ? undef : 0.05 }) }

sub _pg_end
{
    my ($signal) = @_;

    return sub {
        my ($h, $x) = @_;
        my $t = $h->{pg}[0];

        $x->bit($signal eq 'QUIT' ? $t->pg_stop('immediate') : kill 'KILL', $t->{processes}{pg});
        waitpid delete $t->{processes}{pg}, 0 if $signal eq 'KILL';
        return ('', _pg_back($h, $t));
    };
}

sub _pg_kill
{
    my ($h, $x) = @_;
    my $t = $h->{pg}[0];

    $t->pg_kill;
    $x->bit(1);
    return ('all its processes', _pg_back($h, $t));
}

sub _backends
{
    my $h = shift;
    return map { $_->[0] } $h->{desk}->rows("select pid from pg_stat_activity where usename = 'affiliated'");
}

# PostgreSQL then ends all the others, because shared memory may be damaged.
sub _pg_backend_kill
{
    my ($h, $x) = @_;
    my @backends = _backends($h);

    $x->bit(@backends && kill 'KILL', $backends[rand @backends]);
    return ('', 0.1 => sub { return $h->pg_try($h->{pg}[0]) ? undef : 0.05 });
}

sub _pg_backend_stop
{
    my ($h, $x) = @_;
    my @backends = _backends($h);
    my $pid = $backends[rand @backends] or return 'there is none';

    $x->bit(kill 'STOP', $pid);
    return ("backend $pid", _span(0.5, 4) => sub { kill 'CONT', $pid; return });
}

sub _pg_stop
{
    my ($index) = @_;

    return sub {
        my ($h, $x) = @_;
        my @pids = $h->pg_pids($h->{pg}[$index]);

        $x->bit(kill 'STOP', @pids);
        return (scalar(@pids) . ' processes', _span(0.5, 4) => sub { kill 'CONT', @pids; return });
    };
}

sub _pg_log { my ($h, $pattern) = @_; my $n = () = $h->{pg}[0]->slurp($h->{pg}[0]->path('pg.log')) =~ /$pattern/g; return $n }

sub _terminate
{
    my $h = shift;
    return $h->{desk}->value("select count(pg_terminate_backend(pid)) from pg_stat_activity where usename = 'affiliated'");
}

sub _pg_terminate
{
    my ($h, $x) = @_;
    my $n = _terminate($h);

    $x->bit($n);
    return ("$n sessions", 0.1 => sub { return });
}

# A setting of the database or the role, for sessions that begin from now on; what it leads to is in PostgreSQL's log.
sub _pg_setting
{
    my ($on, $off, $pattern) = @_;

    return sub {
        my ($h, $x) = @_;
        my $before = _pg_log($h, $pattern);

        $h->{desk}->psql($on);
        _terminate($h);
        return ('', _span(1, 4) => sub {
            $h->{desk}->psql($off);
            _terminate($h);
            $x->bit(_pg_log($h, $pattern) - $before);
            return;
        });
    };
}

# A session that locks orders and accounts in other orders than ours do.
my $CROSSWISE = <<'END';
begin;
select count(*) from (select 1 from affiliate.account order by random() limit 6 for update) x;
select pg_sleep(0.02);
select count(*) from (select 1 from affiliate.order_now order by random() limit 6 for update) x;
select count(*) from (select 1 from affiliate.account order by random() limit 6 for update) x;
commit;
END

sub _pg_deadlocks
{
    my ($h, $x) = @_;
    my $t = $h->{desk};
    my $before = _pg_log($h, 'deadlock detected');
    my @names = map { "crosswise$_" } 1, 2;

    $t->write('crosswise.sql', $CROSSWISE x 200);
    for my $name (@names) {
        $t->_spawn($name, {}, $t->pg_bin . '/psql', '-XAtq', '-h', $t->{pg_socket}, '-U', 'postgres', '-d', 'affiliate',
            '-f', $t->path('crosswise.sql'));
    }
    return ('', _span(1, 4) => sub {
        $t->_end($_, 'KILL') for grep { $t->alive($_) } @names;
        $t->psql("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'psql' and pid <> pg_backend_pid()");
        $x->bit(_pg_log($h, 'deadlock detected') - $before);
        return;
    });
}

# The daemons keep in Redis with which PostgreSQL, and which timeline of it, they have replayed.
sub _replayed
{
    my $h = shift;
    my $t = $h->{desk};

    # Whoever hangs would hang us, too.
    return 0 if $h->{busy}{redis};
    my $timeline = $t->value('select substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8)');
    my $known = $t->redis('MGET', 'aff:postgres:clicks:0', 'aff:postgres:conversions:0');
    return 2 == grep { defined $_ && $_ =~ m{/$timeline$} } @$known;
}

# The standby takes over, without the commits of the last moments; a new one is made from it.
sub _pg_failover
{
    my ($h, $x) = @_;
    my ($old, $new) = @{ $h->{pg} };
    my $caught_up = 0;

    return ('', 0 => sub {
        return 0.05 unless $h->standby_caught_up;
        $h->wire->mode('standby', 'hole');
        return;
    }, _span(0.1, 0.5) => sub {
        my ($lsn) = map { $_->[0] } $h->{desk}->rows('select pg_current_wal_insert_lsn()');
        my $has = $h->{desk}->value('select count(*) from affiliate.inbox');
        $old->pg_kill;
        my $kept = $new->value('select count(*) from affiliate.inbox');
        $x->bit($has - $kept);
        $h->note($x->{kind}, ($has - $kept) . ' committed batches are lost');
        $new->psql('select pg_promote(false)');
        return;
    }, 0.05 => sub {
        return 0.05 unless $new->value('select not pg_is_in_recovery()') eq 't';
        $h->{pg} = [$new, $old];
        $h->move_wires;
        _line_good($h, 'standby');
        $h->standby_copy($old);
        return;
    }, 0.1 => sub {
        return 0.1 if $old->alive('basebackup');
        $h->pg_follow($old);
        return;
    }, 0 => sub { return $h->pg_try($old) ? undef : 0.05 }, 0 => sub { return _replayed($h) ? undef : 0.1 });
}

# --- the wire --------------------------------------------------------------------------------------------------------

sub _line_good
{
    my ($h, $line) = @_;
    return $line eq 'replication' ? $h->wire->mode($line, 'slow', $LAG_MS) : $h->wire->mode($line, 'pass');
}

# All lines that match are so for a while.
sub _lines
{
    my ($pattern, $mode, $from, $to, $ms) = @_;

    return sub {
        my ($h, $x) = @_;
        (my $mine = $pattern) =~ s/%h/$x->{host} ? $x->{host}{name} : ''/ge;
        my @lines = $h->lines(qr/$mine/);
        my $count = sub { my $n = 0; $n += $h->wire->count($_) for @lines; return $n };
        my $before = $count->();
        my $cut = rand() < 0.5;

        $h->wire->mode($_, $mode, $ms ? int(rand $ms) : 0) for @lines;
        return ("@lines", _span($from, $to) => sub {
            # A hole or a slow line always has connections in it.
            $x->bit($mode =~ /hole|slow/ || $count->() - $before);
            $h->wire->cut($_) for $cut ? @lines : ();
            _line_good($h, $_) for @lines;
            return;
        });
    };
}

sub _cut
{
    my ($h, $x) = @_;
    my $n = 0;

    $n += $h->wire->cut($_) for $h->lines(qr/^redis\.[ab]|^pg\.[ab]/);
    $x->bit($n);
    return ("$n connections", 0 => sub { return });
}

# --- clocks, sockets, disks ------------------------------------------------------------------------------------------

sub _clock_nginx
{
    my ($h, $x) = @_;
    my $step = int(_span(-90, 90) * 1000) / 1000;

    $h->set_clock($x->{host}, $step);
    $x->bit(1);
    return ("$step s", _span(1, 5) => sub { $h->set_clock($x->{host}, 0); return });
}

sub _clock_daemon
{
    my ($h, $x) = @_;
    my $step = int _span(-86400, 86400);

    $h->fickle($x->{host}, 'daemon', 0, $step * 1_000_000_000);
    $x->bit(1);
    return ("$step s", _span(1, 5) => sub { $h->fickle($x->{host}, 'daemon', 0, 0); return });
}

sub _short_writes
{
    my ($whose) = @_;

    return sub {
        my ($h, $x) = @_;
        my $one_of = 1 + int rand 4;
        my $before = $h->fickle($x->{host}, $whose, 16);

        $h->fickle($x->{host}, $whose, 8, $one_of);
        return ("one of $one_of", _span(1, 4) => sub {
            $h->fickle($x->{host}, $whose, 8, 0);
            $x->bit($h->fickle($x->{host}, $whose, 16) - $before);
            return;
        });
    };
}

# Disks of their own, small enough to be filled.
sub mount
{
    my ($h, $path, $megabytes, $owner) = @_;

    mkdir $path or die "$path: $!\n";
    return 0 if $> != 0;
    my ($code) = $h->{desk}->run('mount', '-t', 'tmpfs', '-o', "size=${megabytes}m,mode=0700", 'affiliated-test', $path);
    return 0 if $code;
    $h->{desk}->_own($path, $owner);
    push @{ $h->{mounts} }, $path;
    return 1;
}

# With $keep what is in them is kept in their place.
sub unmount
{
    my ($h, $keep) = @_;
    my $t = $h->{desk};

    while (my $path = pop @{ $h->{mounts} }) {
        $t->run('cp', '-a', $path, "$path.kept") if $keep;
        $t->run('umount', '-l', $path);
        $t->run('sh', '-c', 'rmdir "$0" && mv "$0.kept" "$0"', $path) if $keep;
    }
}

sub _fill
{
    my ($path) = @_;

    open my $file, '>:raw', $path or die "$path: $!\n";
    my ($size, $block) = (0, "\0" x 65536);
    while (my $n = syswrite $file, $block) { $size += $n }
    close $file;
    return $size;
}

# A new worker wants new segments at once.
sub _spool_full
{
    my ($h, $x) = @_;
    my $host = $x->{host};
    my $ballast = $host->{t}->path('spool/ballast');
    my $failed = sub { my $n = () = $host->{t}->error_log =~ /spool.*(?:No space left on device|is full)/g; return $n };
    my $before = $failed->();
    my $size = _fill($ballast);

    kill 'KILL', grep { defined } _a_worker($host);
    return ("$size bytes of ballast", _span(1, 4) => sub {
        unlink $ballast;
        $x->bit($failed->() - $before);
        $h->note($x->{kind}, 'ends');
        return;
    });
}

# What `affiliated dump` says of the segments of a host: [path, records in their order].
sub _segments
{
    my ($h, $host) = @_;
    my $t = $h->{desk};
    my @dump = ($t->_affiliated, '-c', $t->path('affiliated.conf'), 'dump');
    my @segments;

    for my $path (glob $host->{t}->path('spool/*.spool')) {
        my ($code, $out) = $t->run({ env => $t->_sanitizer_env(0) }, @dump, $path);
        my @records = grep { $_->{record} } map { JSON::PP::decode_json($_) } split /\n/, $out;
        push @segments, [$path, @records] if @records;
    }
    return @segments;
}

# How the journal names what is lost, which the auditor must not ask for.
sub _destroyed
{
    my $r = shift;
    my $f = $r->{record};

    return $r->{kind} eq 'click' ? join(' ', 'destroyed click', $f->{id}, $f->{sub5} || '-')
        : join ' ', 'destroyed event', $f->{merchant}, $f->{livemode} ? 't' : 'f', $f->{idempotency_key}, $f->{position};
}

# One of the last frames in a segment, which Redis has not got yet. It and what follows it in that segment are not sent: the file
# is kept aside for whoever can rescue something.
sub _spool_corrupt
{
    my ($h, $x) = @_;
    my $host = $x->{host};
    my $line = "redis.$host->{name}.nginx";

    $h->wire->mode($line, 'hole');
    return ('', _span(0.3, 0.8) => sub {
        $h->nginx_kill($host);
        my @segments = _segments($h, $host);
        my ($path, @records) = @{ $segments[rand @segments] || [] };
        my $last = @records > 4 ? 4 : @records;
        splice @records, 0, @records - 1 - int rand $last if $last;
        _flip($path, $records[0]{offset} + 16) if @records;
        $h->note($x->{kind}, _destroyed($_)) for @records;
        $h->nginx_up($host);
        _line_good($h, $line);
        return;
    }, 1 => sub {
        $x->bit($host->{t}->error_log =~ /is damaged|kept aside/ || glob $host->{t}->path('spool/*.corrupt'));
        return;
    });
}

sub _flip
{
    my ($path, $offset) = @_;

    open my $file, '+<:raw', $path or die "$path: $!\n";
    sysseek $file, $offset, 0;
    sysread $file, my $bytes, 4;
    sysseek $file, $offset, 0;
    syswrite $file, $bytes ^ "\xff\xff\xff\xff";
}

# It can't start again either, before there is room.
sub _pg_no_space
{
    my ($h, $x) = @_;
    my $t = $h->{pg}[0];
    my $ballast = $t->path('pg/ballast');
    my $before = _pg_log($h, 'No space left on device');
    my $size = _fill($ballast);

    return ("$size bytes of ballast", _span(1, 4) => sub {
        unlink $ballast;
        $x->bit(_pg_log($h, 'No space left on device') - $before);
        return;
    }, 0 => sub { return $h->pg_try($t) ? undef : 0.05 });
}

# --- fault points ----------------------------------------------------------------------------------------------------

my %points;

sub _control
{
    my ($t, $whose, $offset, $value) = @_;

    open my $file, '+<:raw', $t->path("$whose.faults") or die "$whose.faults: $!\n";
    sysseek $file, $offset, 0;
    return syswrite $file, pack 'Q', $value if defined $value;
    sysread $file, my $bytes, 8;
    return unpack 'Q', $bytes;
}

sub _fault_point
{
    my ($whose) = @_;

    return sub {
        my ($h, $x) = @_;
        my $t = $x->{host}{t};
        my $file = $whose eq 'nginx' ? $t->{module} : $t->_affiliated;
        my @points = @{ $points{$whose} ||= [`readelf -p aff_faults $file 2>/dev/null` =~ /^\s+\[\s*[0-9a-f]+\]\s+(\S+)$/mg] };
        my $number = int rand @points;
        my $mode = 1 + int rand 2;
        my $passes = 1 + int rand 3;

        _control($t, $whose, 8, $mode);
        _control($t, $whose, 16, $passes);
        _control($t, $whose, 0, $number + 1);
        $h->note('limit', 'of the spool: where it fails, it may refuse') if $points[$number] =~ /^spool/ && $mode == 2;
        # A new worker passes more of them than one that goes on.
        kill 'KILL', grep { defined } _a_worker($x->{host}) if $whose eq 'nginx' && rand() < 0.5;
        return (($mode == 1 ? 'dies at ' : 'fails at ') . $points[$number], _span(0.5, 3) => sub {
            # Counted down, and on below zero by the passes after that.
            my $left = _control($t, $whose, 16);
            $x->bit($left == 0 || $left > $passes);
            _control($t, $whose, 0, 0);
            $h->daemon_up($x->{host}) if $whose eq 'daemon' && !$t->alive('daemon');
            return;
        });
    };
}

# --- the table -------------------------------------------------------------------------------------------------------

my %FAULTS = (
    nginx_kill => [\&_nginx_kill, 'nginx.%h'],
    nginx_master_kill => [\&_nginx_master_kill, 'nginx.%h'],
    nginx_worker_kill => [_worker_signal('KILL'), 'nginx.%h'],
    nginx_worker_respawn => [_worker_signal('TERM'), 'nginx.%h'],
    nginx_worker_stop => [\&_worker_stop, 'nginx.%h'],
    nginx_stop => [\&_nginx_stop, 'nginx.%h'],
    nginx_reload => [\&_nginx_reload, 'nginx.%h'],
    nginx_upgrade => [\&_nginx_upgrade, 'nginx.%h'],
    nginx_shutdown_timeout => [\&_nginx_shutdown_timeout, 'nginx.%h', 'line.redis.%h.nginx'],
    daemon_kill => [\&_daemon_kill, 'daemon.%h'],
    daemon_replaced => [\&_daemon_replaced, 'daemon.%h'],
    daemon_restart => [\&_daemon_restart, 'daemon.%h'],
    daemon_reload => [\&_daemon_reload, 'daemon.%h'],
    daemon_stop => [_daemon_stop(0.5, 4), 'daemon.%h'],
    daemon_stop_long => [_daemon_stop(11, 13), 'daemon.%h'],
    redis_restart => [\&_redis_restart, 'redis'],
    redis_wipe => [\&_redis_wipe, 'redis', 'loss'],
    redis_flushall => [\&_redis_flushall, 'redis', 'loss'],
    redis_failover => [\&_redis_failover, 'redis', 'replica', 'line.replication', 'loss'],
    redis_oom => [\&_redis_oom, 'redis', 'loss'],
    redis_readonly => [\&_redis_readonly, 'redis', 'replica', map { ("line.redis.$_.nginx", "line.redis.$_.daemon") } qw(a b)],
    redis_stop => [_process_stop('redis', 0), 'redis'],
    redis_replica_kill => [\&_replica_kill, 'replica'],
    redis_replica_stop => [_process_stop('redis', 1), 'replica'],
    redis_slow => [_lines('^redis\.%h', 'slow', 1, 3, 400), 'line.redis.%h.nginx', 'line.redis.%h.daemon'],
    redis_reply_lost => [_lines('^redis\.%h', 'drop', 0.2, 1), 'line.redis.%h.nginx', 'line.redis.%h.daemon'],
    redis_refused => [_lines('^redis\.%h\.nginx', 'refuse', 0.5, 4), 'line.redis.%h.nginx'],
    pg_immediate => [_pg_end('QUIT'), 'pg'],
    pg_postmaster_kill => [_pg_end('KILL'), 'pg'],
    pg_kill => [\&_pg_kill, 'pg'],
    pg_backend_kill => [\&_pg_backend_kill, 'pg'],
    pg_backend_stop => [\&_pg_backend_stop, 'pg'],
    pg_stop => [_pg_stop(0), 'pg'],
    pg_terminate => [\&_pg_terminate, 'pg'],
    pg_connections => [_pg_setting('alter role affiliated connection limit 1', 'alter role affiliated connection limit -1',
        'too many connections for role'), 'pg'],
    pg_serializable => [_pg_setting("alter database affiliate set default_transaction_isolation = 'serializable'",
        'alter database affiliate reset default_transaction_isolation', 'could not serialize access'), 'pg'],
    pg_deadlocks => [\&_pg_deadlocks, 'pg'],
    pg_failover => [\&_pg_failover, 'pg', 'standby', 'line.standby', 'loss'],
    pg_standby_kill => [\&_standby_kill, 'standby'],
    pg_standby_stop => [_pg_stop(1), 'standby'],
    pg_slow => [_lines('^pg\.%h', 'slow', 1, 3, 300), 'line.pg.%h.daemon'],
    pg_reply_lost => [_lines('^pg\.%h', 'drop', 0.2, 1), 'line.pg.%h.daemon'],
    pg_no_space => [\&_pg_no_space, 'pg'],
    connections_cut => [\&_cut],
    host_cut => [_lines('^redis\.%h\.nginx', 'hole', 0.5, 4), 'line.redis.%h.nginx'],
    daemon_cut => [_lines('\.%h\.daemon', 'hole', 0.5, 4), 'line.redis.%h.daemon', 'line.pg.%h.daemon'],
    replication_cut => [_lines('^replication', 'hole', 0.5, 4), 'line.replication', 'replica'],
    standby_cut => [_lines('^standby', 'refuse', 0.5, 4), 'line.standby', 'standby'],
    clock_nginx => [\&_clock_nginx, 'clock.nginx.%h'],
    clock_daemon => [\&_clock_daemon, 'clock.daemon.%h'],
    short_writes_nginx => [_short_writes('nginx'), 'sockets.nginx.%h'],
    short_writes_daemon => [_short_writes('daemon'), 'sockets.daemon.%h'],
    spool_full => [\&_spool_full, 'nginx.%h'],
    spool_corrupt => [\&_spool_corrupt, 'nginx.%h', 'line.redis.%h.nginx'],
    fault_point_nginx => [_fault_point('nginx'), 'nginx.%h'],
    fault_point_daemon => [_fault_point('daemon'), 'daemon.%h'],
);

sub _process_stop
{
    my ($name, $index) = @_;

    return sub {
        my ($h, $x) = @_;
        my $pid = $h->{$name}[$index]{processes}{$name};

        $x->bit(kill 'STOP', $pid);
        return ("process $pid", _span(0.5, 4) => sub { kill 'CONT', $pid; return });
    };
}

sub _replica_kill
{
    my ($h, $x) = @_;
    my $t = $h->{redis}[1];

    $t->redis_kill;
    $x->bit(1);
    return ('', _span(0.1, 2) => sub { $h->redis_up($t, replica => 1); return });
}

sub _standby_kill
{
    my ($h, $x) = @_;
    my $t = $h->{pg}[1];

    $t->pg_kill;
    $x->bit(1);
    return ('', _pg_back($h, $t));
}

sub kinds
{
    my $h = shift;
    my %not = (!$h->{asan} ? (fault_point_nginx => 1, fault_point_daemon => 1) : (), map { $_ => 1 } @{ $h->{impossible} || [] });

    return grep { !$not{$_} } sort keys %FAULTS;
}

# --- how it is done --------------------------------------------------------------------------------------------------

sub begin
{
    my ($h, $kind, $n) = @_;
    my ($code, @needs) = @{ $FAULTS{$kind} || die "there is no fault $kind\n" };

    # What happens does not depend on how much chance was needed before, which time decides.
    srand $h->{seed} * 1000 + (defined $n ? $n : ++$h->{injected});
    my $host = $h->{hosts}[rand 2];
    s/%h/$host->{name}/g for @needs;
    return 0 if grep { $h->{busy}{$_} } @needs;
    my %is = map { $_ => 1 } @needs;
    my $bites = $h->{bites}{$kind} ||= [0, 0];
    my $x = bless { kind => $kind, host => $host, needs => \@needs, loss => $is{loss}, bites => $bites }, __PACKAGE__;

    $h->{busy}{$_} = $x for @needs;
    $x->{bites}[0]++;
    my ($detail, @steps) = $code->($h, $x);
    $h->note($kind, join ' ', (grep { /%h/ } @{ $FAULTS{$kind} }) ? $host->{name} : (), $detail);
    _next($h, $x, @steps);
    return 1;
}

sub bit { my ($x, $n) = @_; $x->{bites}[1]++ if $n && !$x->{bit}++ }

sub _next
{
    my ($h, $x, @steps) = @_;

    if (!@steps) {
        delete @{ $h->{busy} }{ @{ $x->{needs} } };
        return;
    }
    my ($delay, $step) = splice @steps, 0, 2;
    _at($h, $x, $delay, $step, time() + $delay + $PATIENCE, @steps);
}

sub _at
{
    my ($h, $x, $delay, $step, $end, @steps) = @_;

    $h->later($delay, sub {
        my $again = $step->();
        die "$x->{kind}: a step does not come to its end\n" if defined $again && time() > $end;
        defined $again ? _at($h, $x, $again, $step, $end, @steps) : _next($h, $x, @steps);
    });
}

1;
