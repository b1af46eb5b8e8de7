package Affiliated::Test;

# The harness of t/module, t/e2e and t/fault: real nginx, Redis, PostgreSQL and affiliated in a private directory.
# Core Perl only. Everything of Test::More is exported, too.
#
#   use Affiliated::Test;
#   my $t = Affiliated::Test->new;                 # prints the directory and the seed; AFF_TEST_SEED replays one
#   $t->redis_start;
#   $t->nginx_start(server => 'location /x { return 204; }');
#   $t->link(code => 'abc', url => 'http://127.0.0.1/shop');       # into Redis, no daemon needed
#   my $r = $t->get('/r/abc');                     # {status, headers, lines, body, raw}
#   is($r->{status}, 302);
#   done_testing();                                # stops everything, adds "no alerts" and "no sanitizer errors"
#
# AFFILIATED_BUILD=asan takes build/asan/. AFFILIATED_KEEP=1 leaves the directory. NGINX=path takes another nginx.
# AFFILIATED_LOGIN=name runs affiliated by a login of this name that owns nothing in PostgreSQL.
# Whoever runs it as root gets nginx's workers as www-data, and PostgreSQL, Redis and affiliated as postgres.
#
# new(%o)              master_keys => text of the key file; dir is $t->{dir}: a new one, or dir => an empty one that stays;
#                      preload => a library for nginx and affiliated, env => {...} more of their environment;
#                      sanitizer => more of ASAN_OPTIONS
# path($name)          a path in the directory;  write($name, $text) writes one and returns its path;  slurp($path)
# port                 a free TCP port, kept for this process
# random($n)           0 .. $n-1, from the seed
# wait_until($what, $code, $seconds = 20)   polls; a failed test and false when it never got true
# run(@command)        (exit code, stdout, stderr);  {stdin => ..., env => {...}, user => ...} may come first
#
# redis_start(%o)      args => [...]; unix socket at $t->{redis_socket}, also TCP at $t->{redis_port}
# redis(@command)      one command; scalars, array references, undef; dies on an error reply (redis_try does not: {error})
# redis_kill, redis_stop, redis_restart(wipe => 1)
# stub(%o)             a RESP proxy in front of Redis for faults, see below
# pg_start(%o)         cluster with the schema; conf => "...", empty => 1 for no schema; $t->{pg_socket} is its directory
# psql($sql, @vars)    text, unaligned, dies on errors;  rows($sql) list of array references;  value($sql)
# pg_stop($mode), pg_kill (SIGKILL to all of it), pg_restart
# nginx_start(%o)      conf => whole file, or main/events/http/server/location-level text added to the usual one (connections => n):
#                      /r/ redirect, /v1/conversions(/batch), /pb, /status, /metrics. workers => n, zone => '8m',
#                      spool => 'max_size=.. ..', redis => 'address ...', log_level => 'info', affiliate => 0 leaves our
#                      directives out, module => 0 also load_module. fail => 1: returns nginx's output instead of dying.
#                      %%DIR%% %%PORT%% %%REDIS%% %%REDIS_PORT%% %%MODULE%% %%KEYS%% are replaced everywhere.
# nginx_conf(%o)       only writes the configuration; nginx_test gives (exit code, output) of nginx -t
# nginx_reload, nginx_signal($name), nginx_stop($signal = QUIT), nginx_kill (SIGKILL to master and workers)
# nginx_pid, nginx_workers (pids), kill_worker($pid) (SIGKILL, and its alert is expected)
# allow_alerts(qr//)   these alerts are no failure;  error_log, access_log: their text;  wait_log(qr//, $seconds)
# http($raw | [parts], %o)    raw request to nginx; parts are sent as packets of their own; read => 0 does not read
# get($path, name => value ...), head, request($method, $path, headers => [[n, v]..], body => .., chunked => [..], split => [..])
# keepalive            a connection object: ->send($raw), ->response, ->close
# keys_and_worlds:
# link(%fields)        writes aff:link:CODE (merchant, link, campaign, affiliate, expires_ms, state, livemode, url, param,
#                      fallback, hosts => [..], version) and the epoch; gives back the fields
# api_key(%fields)     writes aff:key:ID (merchant, livemode, revoked); {id, secret, merchant, livemode}
# click_id(%fields)    a genuine one: merchant, livemode, at_ms
# sign(key, %o)        headers of a signed call: method, path, body, idempotency_key, timestamp
# call(key, $body, %o) a signed POST to /v1/conversions: %o also path, headers
# postback(key, \%fields | query, %o)  a signed GET of /pb with these parameters, or this query
# daemon_start(%o)     affiliated run; conf => {section => {name => value}} changes, roles => [...]; daemon_stop, daemon_kill
# cli(@args)           (exit code, stdout, stderr) of affiliated;  cli_json(@args) its rows; dies when it fails
# world(%o)            through the CLI: merchant, campaign, affiliate, link, test link, keys; a hash of their ids
#
# stub(listen => 'unix'|'tcp', reply => sub { my ($command) = @_; raw reply or undef to pass on })
#   ->address for affiliate_redis; ->mode($mode) at any time:
#     pass   as if it were not there          hang     takes commands, never answers
#     garbage  bytes that are no reply        loading  -LOADING to everything
#     oom    -OOM to everything               split    replies in pieces of 1..7 bytes, apart in time
#     rst    half a reply, then RST (tcp)     extra    each reply is followed by one that nobody asked for
#     array   an array of 2^30 elements, as it says    arrays   60 000, each an array of as many
#     refuse  closes at once                  big      a 20 KB bulk string instead of each reply, in pieces
#     endless the first 80 MiB of a string
#   ->commands: list of array references, as they came

use strict;
use warnings;

use Cwd ();
use Digest::SHA ();
use Fcntl qw(:flock :mode F_SETFD);
use File::Basename ();
use File::Path ();
use File::Temp ();
use IO::Handle ();
use IO::Select ();
use IO::Socket::INET ();
use IO::Socket::UNIX ();
use JSON::PP ();
use POSIX qw(WNOHANG);
use Socket qw(SOL_SOCKET SO_LINGER);
use Test::More ();
use Time::HiRes qw(sleep time);

our $TOP = Cwd::abs_path(File::Basename::dirname(__FILE__) . '/../../..');

my @objects;
my $owner = $$;

sub import
{
    my $class = shift;
    my $caller = caller;

    strict->import;
    warnings->import;
    no strict 'refs';
    for my $name (@Test::More::EXPORT) {
        next if $name eq 'done_testing';
        my ($sigil, $bare) = $name =~ /^([\$\@%]?)(.*)/;
        *{"${caller}::$bare"} = $sigil eq '$' ? \${"Test::More::$bare"} : \&{"Test::More::$bare"};
    }
    *{"${caller}::done_testing"} = \&done_testing;
    *{"${caller}::sleep"} = \&Time::HiRes::sleep;
    *{"${caller}::time"} = \&Time::HiRes::time;
}

sub new
{
    my ($class, %o) = @_;
    my $dir = $o{dir} || File::Temp::tempdir('affiliated-test.XXXXXX', TMPDIR => 1);
    my $seed = $ENV{AFF_TEST_SEED} || int(rand(2**31));
    my $asan = ($ENV{AFFILIATED_BUILD} || '') eq 'asan';
    my $build = "$TOP/build" . ($asan ? '/asan' : '');
    my $self = bless {
        dir => $dir, seed => $seed, build => $build, tools => "$TOP/build/t/lib", asan => $asan,
        module => "$build/ngx_http_affiliate_module.so",
        processes => {}, locks => [], allowed => [], nginx_count => 0,
        keep => defined $o{dir}, preload => $o{preload}, env => $o{env} || {}, sanitizer => $o{sanitizer},
    }, $class;

    chmod 0755, $dir;
    srand($seed);
    Test::More::note("directory $dir, AFF_TEST_SEED=$seed");
    $self->{nginx} = $ENV{AFFILIATED_NGINX} || _find('nginx');
    if ($asan) {
        # Of the fault points, see protocol/fault.h: mapped by whoever starts, root or not.
        chmod 0666, $self->write("$_.faults", "\0" x 4096) for qw(nginx daemon);
    }
    $self->write('keys', $o{master_keys} || 'test ' . join('', map { sprintf '%02x', $_ } 1 .. 32) . "\n");
    $self->{keys} = $self->path('keys');
    chmod 0600, $self->{keys};
    $self->_own($self->{keys}, 'postgres');
    push @objects, $self;
    return $self;
}

sub done_testing
{
    $_->finish for @objects;
    Test::More::done_testing();
}

# Stops everything and looks into the logs.
sub finish
{
    my $self = shift;

    return if $self->{finished}++;
    $self->daemon_stop if $self->{processes}{daemon};
    $self->nginx_stop if $self->{processes}{nginx};
    $self->_kill_all;

    if ($self->{nginx_count}) {
        my $log = $self->error_log;
        my @alerts = grep {
            my $line = $_;
            !grep { $line =~ $_ } @{ $self->{allowed} }
        } grep { /\[(?:alert|emerg)\]/ } split /\n/, $log;
        Test::More::is(join("\n", @alerts), '', 'no alerts');
    }
    if ($self->{nginx_count} || $self->{daemon_count}) {
        my $log = join '', $self->error_log, $self->daemon_log, map { $self->slurp($_) } glob "$self->{dir}/asan.*";
        my @found = grep { /ERROR: \w+Sanitizer|runtime error:|Assertion .* failed/ } split /\n/, $log;
        Test::More::is(join("\n", @found), '', 'no sanitizer errors');
        Test::More::diag($log =~ /(==\d+==ERROR: .{0,4000})/s ? $1 : '') if @found;
    }
}

END {
    if ($$ == $owner) {
        my $code = $?;

        for my $self (@objects) {
            $self->_kill_all;
            if ($ENV{AFFILIATED_KEEP}) {
                Test::More::diag("kept $self->{dir}");
            } elsif (!$self->{keep}) {
                if ($code || !Test::More->builder->is_passing) {
                    $self->_show_tail($_) for grep { -s } $self->path('error.log'), $self->path('daemon.log');
                }
                File::Path::remove_tree($self->{dir}, { safe => 0 });
            }
        }
        $? = $code;
    }
}

for my $signal (qw(INT TERM HUP)) {
    $SIG{$signal} = sub { exit 1 };
}
$SIG{PIPE} = 'IGNORE';

sub _show_tail
{
    my ($self, $path) = @_;
    my @lines = grep { !/\[debug\]/ } split /\n/, $self->slurp($path);

    splice @lines, 0, @lines - 25 if @lines > 25;
    Test::More::diag(join "\n", "--- $path", @lines);
}

# --- files, processes, time ----------------------------------------------------------------------------------------

sub path { return "$_[0]{dir}/$_[1]" }

sub write
{
    my ($self, $name, $text) = @_;
    my $path = $name =~ m{^/} ? $name : $self->path($name);

    open my $file, '>:raw', $path or die "$path: $!\n";
    print $file $text;
    close $file or die "$path: $!\n";
    return $path;
}

sub slurp
{
    my ($self, $path) = @_;

    open my $file, '<:raw', $path or return '';
    local $/;
    my $text = <$file>;
    return defined $text ? $text : '';
}

sub random { my ($self, $n) = @_; return int(rand($n)) }

sub port
{
    my $self = shift;
    my $locks = File::Spec->tmpdir . '/affiliated-test-ports';

    mkdir $locks and chmod 01777, $locks;
    for my $try (1 .. 2000) {
        my $port = 20000 + ($$ * 7 + $try * 13) % 10000;
        open my $lock, '>>', "$locks/$port" or next;
        chmod 0666, "$locks/$port";
        next unless flock $lock, LOCK_EX | LOCK_NB;
        IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => $port, Listen => 1, ReuseAddr => 1) or next;
        push @{ $self->{locks} }, $lock;
        return $port;
    }
    die "no free port\n";
}

sub wait_until
{
    my ($self, $what, $code, $seconds) = @_;
    my $end = time() + ($seconds || 20);

    while (1) {
        my $got = $code->();
        return $got if $got;
        last if time() > $end;
        sleep 0.02;
    }
    Test::More::fail("waited for: $what");
    return;
}

sub _find
{
    my $name = shift;

    for my $dir (split(/:/, $ENV{PATH}), '/usr/sbin', '/usr/local/sbin', '/sbin') {
        return "$dir/$name" if -x "$dir/$name";
    }
    die "$name is not installed\n";
}

sub _user
{
    my $name = shift;

    return if $> != 0 || !$name;
    my (undef, undef, $uid, $gid) = getpwnam $name or die "there is no user $name\n";
    return ($uid, $gid);
}

sub _become
{
    my $name = shift;
    my ($uid, $gid) = _user($name) or return;

    $( = $gid;
    $) = "$gid $gid";
    POSIX::setuid($uid);
}

sub _own
{
    my ($self, $path, $user) = @_;
    my @ids = _user($user) or return;

    chown @ids, $path;
}

# A process group of its own, so that whatever it starts ends with it.
sub _spawn
{
    my ($self, $name, $o, @command) = @_;
    my $pid = fork;

    die "fork: $!\n" unless defined $pid;
    if (!$pid) {
        setpgrp;
        $SIG{$_} = 'DEFAULT' for qw(INT TERM HUP PIPE);
        open STDIN, '<', '/dev/null';
        open STDOUT, '>>', $o->{log} || $self->path("$name.log");
        open STDERR, '>&', \*STDOUT;
        $ENV{$_} = $o->{env}{$_} for keys %{ $o->{env} || {} };
        chdir $self->{dir};
        _become($o->{user});
        exec { $command[0] } @command or POSIX::_exit(127);
    }
    $self->{processes}{$name} = $pid;
    return $pid;
}

sub alive
{
    my ($self, $name) = @_;
    my $pid = $self->{processes}{$name} or return 0;

    return 1 if waitpid($pid, WNOHANG) == 0;
    delete $self->{processes}{$name};
    return 0;
}

# Ends a process; true if it went by itself within the time.
sub _end
{
    my ($self, $name, $signal, $seconds) = @_;
    my $pid = $self->{processes}{$name} or return 1;
    my $end = time() + ($seconds || 30);

    kill $signal, $pid;
    while (time() < $end) {
        if (waitpid($pid, WNOHANG) != 0) {
            $self->{"$name\_status"} = $?;
            delete $self->{processes}{$name};
            kill 'KILL', -$pid;
            return 1;
        }
        sleep 0.01;
    }
    kill 'KILL', -$pid;
    waitpid $pid, 0;
    delete $self->{processes}{$name};
    return 0;
}

sub _kill_all
{
    my $self = shift;

    for my $name (keys %{ $self->{processes} }) {
        my $pid = $self->{processes}{$name};
        kill 'QUIT', $pid if $name eq 'pg';    # lets it remove its shared memory
    }
    for my $name (keys %{ $self->{processes} }) {
        my $pid = delete $self->{processes}{$name};
        for (1 .. 100) {
            last if $name ne 'pg' || waitpid($pid, WNOHANG) != 0;
            sleep 0.02;
        }
        kill 'KILL', -$pid;
        waitpid $pid, 0;
    }
}

sub run
{
    my ($self, @command) = @_;
    my $o = ref $command[0] eq 'HASH' ? shift @command : {};
    my $in = File::Temp->new;
    my ($out, $err) = (File::Temp->new, File::Temp->new);
    my $pid;

    binmode $in;
    print $in defined $o->{stdin} ? $o->{stdin} : '';
    $in->flush;
    $pid = fork;
    die "fork: $!\n" unless defined $pid;
    if (!$pid) {
        $SIG{$_} = 'DEFAULT' for qw(INT TERM HUP PIPE);
        open STDIN, '<', "$in";
        open STDOUT, '>>', "$out";
        open STDERR, '>>', "$err";
        $ENV{$_} = $o->{env}{$_} for keys %{ $o->{env} || {} };
        chdir($o->{dir} || $self->{dir});
        _become($o->{user});
        exec { $command[0] } @command or POSIX::_exit(127);
    }
    waitpid $pid, 0;
    my $code = $? & 127 ? 128 + ($? & 127) : $? >> 8;
    return ($code, $self->slurp("$out"), $self->slurp("$err"));
}

# The environment of nginx and affiliated. A sanitizer comes before all else that is preloaded.
sub _sanitizer_env
{
    my ($self, $nginx) = @_;
    my @preload = grep { defined } $self->{preload};

    if (!$self->{asan}) {
        return { %{ $self->{env} }, (@preload ? (LD_PRELOAD => "@preload") : ()) };
    }
    chomp(my $asan = `gcc -print-file-name=libasan.so`);
    unshift @preload, $asan if $nginx || @preload;
    return {
        %{ $self->{env} },
        AFFILIATED_FAULT_FILE => $self->path($nginx ? 'nginx.faults' : 'daemon.faults'),
        (@preload ? (LD_PRELOAD => join ':', @preload) : ()),
        ASAN_OPTIONS => 'abort_on_error=1:disable_coredump=1:detect_leaks=' . (@preload ? 0 : 1) . ($self->{sanitizer} ? ":$self->{sanitizer}" : ''),
        UBSAN_OPTIONS => 'print_stacktrace=1:halt_on_error=1',
    };
}

# --- Redis -------------------------------------------------------------------------------------------------------------

sub redis_start
{
    my ($self, %o) = @_;
    my $data = $self->path('redis');

    mkdir $data;
    $self->_own($data, 'postgres');
    $self->{redis_socket} ||= $self->path('redis/redis.sock');
    $self->{redis_port} ||= $self->port;
    $self->{redis_args} = $o{args} if $o{args};
    unlink $self->{redis_socket};
    delete $self->{redis_client};
    $self->_spawn('redis', { user => 'postgres' }, _find('redis-server'),
        '--port', $self->{redis_port}, '--bind', '127.0.0.1', '--unixsocket', $self->{redis_socket},
        '--unixsocketperm', '777', '--dir', $data, '--save', '', '--appendonly', 'no', '--daemonize', 'no',
        '--loglevel', 'warning', @{ $self->{redis_args} || [] });
    $self->wait_until('Redis', sub { my $r = eval { $self->redis_try('PING') }; defined $r && $r eq 'PONG' })
        or die "Redis does not start:\n" . $self->slurp($self->path('redis.log'));
    return $self;
}

sub redis_stop { my $self = shift; delete $self->{redis_client}; return $self->_end('redis', 'TERM') }
sub redis_kill { my $self = shift; delete $self->{redis_client}; return $self->_end('redis', 'KILL') }

sub redis_restart
{
    my ($self, %o) = @_;

    $self->redis_kill;
    if ($o{wipe}) {
        File::Path::remove_tree($self->path('redis'), { keep_root => 1 });
    }
    return $self->redis_start;
}

sub _resp { return join '', '*' . @_ . "\r\n", map { '$' . length($_) . "\r\n$_\r\n" } @_ }

sub redis_try
{
    my ($self, @command) = @_;

    for my $try (0, 1) {
        if (!$self->{redis_client}) {
            my $socket = IO::Socket::UNIX->new(Peer => $self->{redis_socket}) or die "Redis: $!\n";
            binmode $socket;
            $self->{redis_client} = { socket => $socket, buffer => '' };
        }
        my $client = $self->{redis_client};
        $client->{socket}->syswrite(_resp(@command));
        my $reply = eval { _reply($client) };
        return $reply unless $@;
        delete $self->{redis_client};
        die $@ if $try;
    }
}

sub redis
{
    my ($self, @command) = @_;
    my $reply = $self->redis_try(@command);

    die "Redis: @command: $reply->{error}\n" if ref $reply eq 'HASH';
    return $reply;
}

sub _fill
{
    my ($client, $length) = @_;

    while (length $client->{buffer} < $length) {
        IO::Select->new($client->{socket})->can_read(20) or die "no reply in time\n";
        sysread($client->{socket}, $client->{buffer}, 65536, length $client->{buffer}) or die "connection closed\n";
    }
}

sub _line
{
    my $client = shift;

    while ((my $end = index $client->{buffer}, "\r\n") < 0) {
        _fill($client, length($client->{buffer}) + 1);
    }
    $client->{buffer} =~ s/\A(.*?)\r\n//s;
    return $1;
}

sub _reply
{
    my $client = shift;
    my $line = _line($client);
    my ($type, $rest) = (substr($line, 0, 1), substr($line, 1));

    return $rest if $type eq '+' || $type eq ':';
    return { error => $rest } if $type eq '-';
    if ($type eq '$') {
        return undef if $rest < 0;
        _fill($client, $rest + 2);
        my $value = substr $client->{buffer}, 0, $rest;
        substr($client->{buffer}, 0, $rest + 2) = '';
        return $value;
    }
    if ($type eq '*') {
        return undef if $rest < 0;
        return [map { _reply($client) } 1 .. $rest];
    }
    die "not a reply: $line\n";
}

sub stub
{
    my ($self, %o) = @_;

    $self->redis_start unless $self->{redis_socket};
    return Affiliated::Test::Stub->new($self, %o);
}

# --- PostgreSQL ----------------------------------------------------------------------------------------------------

sub pg_bin
{
    my $self = shift;
    my @dirs = sort { ($b =~ /(\d+)/)[0] <=> ($a =~ /(\d+)/)[0] } glob '/usr/lib/postgresql/*/bin';

    return $ENV{PG_BIN} || (grep { -x "$_/postgres" } @dirs)[0] || die "PostgreSQL is not installed\n";
}

my $PG_CONF = <<'END';
listen_addresses = ''
fsync = off
max_connections = 60
shared_buffers = 64MB
timezone = 'UTC'
log_min_messages = warning
max_wal_size = 512MB
END

# A data directory is made once for each version of the schema, then copied.
sub _pg_template
{
    my ($self, $empty) = @_;
    my $bin = $self->pg_bin;
    my @sql = $empty ? () : sort glob "$TOP/sql/*.sql";
    my $hash = Digest::SHA::sha1_hex(join "\0", $bin, $PG_CONF, map { $self->slurp($_) } @sql);
    my $cache = "$TOP/build/t/cache";
    my $template = "$cache/pg-" . substr($hash, 0, 16) . "-$>";

    File::Path::make_path($cache);
    open my $lock, '>>', "$cache/lock" or die "$cache/lock: $!\n";
    flock $lock, LOCK_EX;
    return $template if -d $template;

    my $data = $self->path('pg-template');
    mkdir $data, 0700;
    $self->_own($data, 'postgres');
    my ($code, $out, $err) = $self->run({ user => 'postgres' }, "$bin/initdb", '-D', $data, '-U', 'postgres', '-A', 'trust',
        '-E', 'UTF8', '--locale=C.UTF-8', '--no-sync', '--wal-segsize=4');
    die "initdb: $err" if $code;
    $self->write("$data/postgresql.auto.conf", $PG_CONF);
    $self->_pg_run($data);
    $self->psql('create database affiliate', db => 'postgres');
    $self->_pg_migrate(@sql) if @sql;
    $self->_end('pg', 'INT') or die "PostgreSQL does not stop\n";
    my $old = join ' ', glob "$cache/pg-*-$>";
    File::Path::remove_tree(grep { -M $_ > 1 } split / /, $old) if $old;
    ($code, $out, $err) = $self->run('cp', '-a', $data, "$template.part");
    die "cp: $err" if $code;
    rename "$template.part", $template or die "$template: $!\n";
    File::Path::remove_tree($data);
    return $template;
}

# What `affiliated migrate` does.
sub _pg_migrate
{
    my ($self, @sql) = @_;
    my $version = 0;

    $self->psql('create schema if not exists affiliate; create table affiliate.schema_version (version integer primary key, '
            . 'name text not null, checksum text not null, applied_at timestamptz not null default now())');
    for my $path (@sql) {
        my $text = $self->slurp($path);
        my $sum = Digest::SHA::sha256_hex($text);
        my $name = File::Basename::basename($path, '.sql');

        $version++;
        $self->psql("begin;\n$text\n; insert into affiliate.schema_version (version, name, checksum) "
                . "values ($version, '$name', '$sum'); commit;");
    }
}

sub pg_start
{
    my ($self, %o) = @_;
    my $data = $self->path('pg');

    if (!-d $data) {
        my $template = $self->_pg_template($o{empty});
        my ($code, $out, $err) = $self->run('cp', '-a', '--reflink=auto', $template, $data);
        die "cp: $err" if $code;
        if ($o{conf}) {
            $self->write("$data/postgresql.auto.conf", $PG_CONF . $o{conf} . "\n");
            $self->_own("$data/postgresql.auto.conf", 'postgres');
        }
    }
    $self->_pg_run($data);
    $self->psql("do \$\$ begin if to_regrole('$ENV{AFFILIATED_LOGIN}') is null then create role $ENV{AFFILIATED_LOGIN} login; "
            . "perform affiliate.grant_rights('$ENV{AFFILIATED_LOGIN}', true); end if; end \$\$") if $ENV{AFFILIATED_LOGIN} && !$o{empty};
    return $self;
}

sub _pg_run
{
    my ($self, $data) = @_;

    $self->{pg_socket} = $self->path('pgs');
    mkdir $self->{pg_socket};
    $self->_own($self->{pg_socket}, 'postgres');
    $self->_spawn('pg', { user => 'postgres' }, $self->pg_bin . '/postgres', '-D', $data, '-k', $self->{pg_socket});
    $self->wait_until('PostgreSQL', sub {
        my ($code) = $self->run($self->pg_bin . '/pg_isready', '-q', '-h', $self->{pg_socket});
        return $code == 0;
    }, 60) or die "PostgreSQL does not start:\n" . $self->slurp($self->path('pg.log'));
}

sub pg_stop
{
    my ($self, $mode) = @_;
    my %signal = (smart => 'TERM', fast => 'INT', immediate => 'QUIT');

    return $self->_end('pg', $signal{ $mode || 'fast' }, 60);
}

# As an out-of-memory killer would: the postmaster and all its children at once.
sub pg_kill
{
    my $self = shift;
    my $pid = $self->{processes}{pg} or return;

    kill 'KILL', $pid, _children($pid);
    $self->_end('pg', 'KILL');
    unlink $self->path('pg/postmaster.pid');
}

sub pg_restart { my ($self, $mode) = @_; $self->pg_stop($mode); return $self->pg_start }

sub _children
{
    my $parent = shift;
    my @found;

    for my $stat (glob '/proc/[0-9]*/stat') {
        open my $file, '<', $stat or next;
        my $line = <$file>;
        push @found, $1 if defined $line && $line =~ /^(\d+) \(.*\) \S (\d+)/s && $2 == $parent;
    }
    return @found;
}

sub psql
{
    my ($self, $sql, %o) = @_;
    my ($code, $out, $err) = $self->run({ stdin => $sql, env => { PGOPTIONS => '-c client_min_messages=warning' } },
        $self->pg_bin . '/psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-F', "\t", '-h', $self->{pg_socket}, '-U', 'postgres',
        '-d', $o{db} || 'affiliate', '-f', '-');

    die "psql: $err$sql\n" if $code;
    chomp $out;
    return $out;
}

sub rows
{
    my ($self, $sql) = @_;
    return map { [split /\t/, $_, -1] } split /\n/, $self->psql($sql);
}

sub value
{
    my ($self, $sql) = @_;
    my ($line) = split /\n/, $self->psql($sql);
    return defined $line ? $line : '';
}

# --- nginx ---------------------------------------------------------------------------------------------------------

sub nginx_conf
{
    my ($self, %o) = @_;
    my $text = $o{conf};
    my %add = map { $_ => defined $o{$_} ? $o{$_} : '' } qw(main events http server);
    my $level = $o{log_level} || 'info';
    my $user = $> == 0 ? 'user www-data;' : '';
    my $load = defined $o{module} && !$o{module} ? '' : "load_module $self->{module};";
    my $ours = '';
    my $locations = '';

    $self->{port} ||= $self->port;
    if (!defined $o{affiliate} || $o{affiliate}) {
        my $redis = $o{redis} || 'unix:' . ($self->{redis_socket} || $self->path('redis/redis.sock'));
        my $zone = $o{zone} || '8m';
        my $spool = defined $o{spool} ? $o{spool} : 'max_size=64m segment=1m';
        # A crowded machine may need longer than the default to connect and to ask; no test is about that.
        my $patience = $add{http} =~ /affiliate_lookup_timeout/ ? '' : 'affiliate_lookup_timeout 2s;';
        $ours = <<"END";
    affiliate_zone affiliate:$zone;
    affiliate_redis $redis;
    affiliate_key_file $self->{keys};
    affiliate_spool $self->{dir}/spool $spool;
    $patience
END
        $locations = <<'END';
        location /r/ { affiliate_redirect; }
        location /v1/conversions { affiliate_conversion; }
        location /pb { affiliate_postback; }
        location /status { affiliate_status json; }
        location /metrics { affiliate_status prometheus; }
END
    }
    $text = <<"END" unless defined $text;
$load
$user
worker_processes @{[ $o{workers} || 1 ]};
$add{main}
events {
    worker_connections @{[ $o{connections} || 1024 ]};
    $add{events}
}
http {
    access_log $self->{dir}/access.log;
    client_body_temp_path $self->{dir}/temp-body;
    proxy_temp_path $self->{dir}/temp-proxy;
    fastcgi_temp_path $self->{dir}/temp-fastcgi;
    uwsgi_temp_path $self->{dir}/temp-uwsgi;
    scgi_temp_path $self->{dir}/temp-scgi;
$ours
$add{http}
    server {
        listen 127.0.0.1:%%PORT%%;
        server_name localhost;
$add{server}
$locations
    }
}
END
    my %value = (
        DIR => $self->{dir}, PORT => $self->{port}, MODULE => $self->{module}, KEYS => $self->{keys},
        REDIS => 'unix:' . ($self->{redis_socket} || $self->path('redis/redis.sock')), REDIS_PORT => $self->{redis_port});
    $text =~ s/%%([A-Z_]+)%%/exists $value{$1} ? $value{$1} : die "unknown %%$1%%\n"/ge;
    $text = "error_log $self->{dir}/error.log $level;\npid $self->{dir}/nginx.pid;\n$text";
    return $self->write('nginx.conf', $text);
}

sub _nginx_command
{
    my ($self, @more) = @_;
    return ($self->{nginx}, '-p', $self->{dir}, '-c', $self->path('nginx.conf'), '-e', $self->path('error.log'), @more);
}

sub nginx_test
{
    my $self = shift;
    my ($code, $out, $err) = $self->run({ env => $self->_sanitizer_env(1) }, $self->_nginx_command('-t'));
    return ($code, "$out$err");
}

sub nginx_start
{
    my ($self, %o) = @_;

    $self->nginx_conf(%o) if %o || !-e $self->path('nginx.conf');
    unlink $self->path('nginx.pid');
    $self->{nginx_count}++;
    # Somebody else's run looks whether the port is free: nginx tries again, and whether it is up is seen below.
    $self->allow_alerts(qr/bind\(\) to \S+ failed \(98: Address already in use\)/);
    $self->_spawn('nginx', { log => $self->path('nginx.out'), env => $self->_sanitizer_env(1) },
        $self->_nginx_command('-g', 'daemon off;'));
    my $up = 0;
    for (1 .. 1500) {
        last unless $self->alive('nginx');
        if (-s $self->path('nginx.pid') && ($o{no_listen} || $self->_connect)) {
            $up = 1;
            last;
        }
        sleep 0.02;
    }
    return $self if $up;
    my $out = $self->slurp($self->path('nginx.out')) . $self->error_log;
    $self->_end('nginx', 'KILL');
    return $out if $o{fail};
    die "nginx does not start:\n$out";
}

sub nginx_pid
{
    my $self = shift;
    my $pid = $self->slurp($self->path('nginx.pid'));

    chomp $pid;
    return $pid;
}

sub nginx_workers
{
    my ($self, $master) = @_;
    my @workers;

    for my $pid (_children($master || $self->nginx_pid)) {
        push @workers, $pid if $self->slurp("/proc/$pid/cmdline") =~ /^nginx: worker process(?! is shutting)/;
    }
    return sort { $a <=> $b } @workers;
}

sub nginx_signal { my ($self, $name) = @_; return kill $name, $self->nginx_pid }

# Waits until the old workers are gone or shutting down and new ones answer.
sub nginx_reload
{
    my ($self, %o) = @_;
    my %old = map { $_ => 1 } $self->nginx_workers;

    $self->nginx_conf(%o) if %o;
    $self->nginx_signal('HUP');
    return $self->wait_until('new workers', sub {
        my @now = $self->nginx_workers;
        return @now && !grep { $old{$_} } @now;
    });
}

sub nginx_stop
{
    my ($self, $signal, $seconds) = @_;
    my $ok = $self->_end('nginx', $signal || 'QUIT', $seconds || 30);

    Test::More::fail('nginx stops in time') unless $ok;
    return $ok;
}

sub kill_worker
{
    my ($self, $pid) = @_;

    ($pid) = $self->nginx_workers unless $pid;
    $self->allow_alerts(qr/worker process \d+ exited on signal 9/);
    $self->allow_alerts(qr/shared memory zone .* was locked by/);
    kill 'KILL', $pid;
    return $pid;
}

sub nginx_kill
{
    my $self = shift;
    my $pid = $self->{processes}{nginx} or return;

    kill 'KILL', -$pid;
    return $self->_end('nginx', 'KILL');
}

sub allow_alerts { my ($self, @patterns) = @_; push @{ $self->{allowed} }, @patterns }
sub error_log { my $self = shift; return $self->slurp($self->path('error.log')) }
sub access_log { my $self = shift; return $self->slurp($self->path('access.log')) }
sub daemon_log { my $self = shift; return $self->slurp($self->path('daemon.log')) }

sub wait_log
{
    my ($self, $pattern, $seconds) = @_;
    return $self->wait_until("error.log has $pattern", sub { $self->error_log =~ $pattern }, $seconds);
}

# --- HTTP ----------------------------------------------------------------------------------------------------------

sub _connect
{
    my $self = shift;
    my $socket = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $self->{port}, Timeout => 5);

    if ($socket) {
        binmode $socket;
        setsockopt $socket, Socket::IPPROTO_TCP(), Socket::TCP_NODELAY(), 1;
    }
    return $socket;
}

sub keepalive
{
    my $self = shift;
    my $socket = $self->_connect or die "nginx does not accept: $!\n";

    return bless { socket => $socket, buffer => '' }, 'Affiliated::Test::Connection';
}

sub http
{
    my ($self, $raw, %o) = @_;
    my @parts = ref $raw ? @$raw : ($raw);
    my $connection = $self->keepalive;

    for my $i (0 .. $#parts) {
        sleep($o{pause} || 0.05) if $i;
        $connection->send($parts[$i]) or last;
    }
    return $connection if exists $o{read} && !$o{read};
    return $connection->response(timeout => $o{timeout}, head => $parts[0] =~ /^HEAD / ? 1 : 0);
}

sub request
{
    my ($self, $method, $path, %o) = @_;
    my @headers = @{ $o{headers} || [] };
    my %has = map { lc $_->[0] => 1 } @headers;
    my ($head, @body);

    unshift @headers, ['Host', 'localhost'] unless $has{host};
    push @headers, ['Connection', 'close'] unless $has{connection};
    if ($o{chunked}) {
        push @headers, ['Transfer-Encoding', 'chunked'];
        @body = ((map { sprintf("%x\r\n%s\r\n", length $_, $_) } grep { length } @{ $o{chunked} }), "0\r\n\r\n");
    } elsif ($o{split}) {
        @body = @{ $o{split} };
        push @headers, ['Content-Length', length join '', @body] unless $has{'content-length'};
    } elsif (defined $o{body}) {
        @body = ($o{body});
        push @headers, ['Content-Length', length $o{body}] unless $has{'content-length'};
    }
    $head = "$method $path HTTP/1.1\r\n" . join('', map { "$_->[0]: $_->[1]\r\n" } @headers) . "\r\n";
    return $self->http([$o{chunked} || $o{split} ? ($head, @body) : join('', $head, @body)], %o);
}

sub get
{
    my ($self, $path, @headers) = @_;
    return $self->request('GET', $path, headers => _browser(@headers));
}

sub head
{
    my ($self, $path, @headers) = @_;
    return $self->request('HEAD', $path, headers => _browser(@headers));
}

# A person's browser, unless the headers given say otherwise.
sub _browser
{
    my @headers;

    while (@_) {
        my ($name, $value) = splice @_, 0, 2;
        push @headers, [$name, $value];
    }
    unshift @headers, ['User-Agent', 'Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) '
            . 'Chrome/126.0.0.0 Safari/537.36'] unless grep { lc $_->[0] eq 'user-agent' } @headers;
    return [grep { defined $_->[1] } @headers];
}

# --- records, ids, signatures --------------------------------------------------------------------------------------

sub _forge
{
    my ($self, @arguments) = @_;
    my ($code, $out, $err) = $self->run("$self->{tools}/forge", $self->{keys}, @arguments);

    die "forge @arguments: $err" if $code;
    return $out;
}

sub link
{
    my ($self, %fields) = @_;
    my @hosts = @{ delete $fields{hosts} || ['127.0.0.1'] };

    %fields = (code => 'abc', url => 'http://127.0.0.1/shop', merchant => 1, link => 1, campaign => 1, affiliate => 1,
        state => 1, livemode => 1, version => int(time() * 1000), %fields);
    $self->redis('SET', "aff:link:$fields{code}",
        $self->_forge('link', (map { "$_=$fields{$_}" } sort keys %fields), map { "host=$_" } @hosts));
    $self->projection_complete;
    return \%fields;
}

sub api_key
{
    my ($self, %fields) = @_;

    %fields = (merchant => 1, livemode => 1, revoked => 0, version => int(time() * 1000), %fields);
    if (!$fields{id}) {
        chomp($fields{id} = $self->_forge('key-id', "livemode=$fields{livemode}"));
    }
    chomp(my $secret = $self->_forge('secret', "id=$fields{id}"));
    $self->redis('SET', "aff:key:$fields{id}", $self->_forge('key', map { "$_=$fields{$_}" } sort keys %fields));
    $self->projection_complete;
    return { %fields, secret => $secret };
}

sub projection_complete { my $self = shift; return $self->redis('SET', 'aff:epoch', '00000000000000e1') }

sub click_id
{
    my ($self, %fields) = @_;

    %fields = (merchant => 1, livemode => 1, at_ms => int(time() * 1000) - 60_000, %fields);
    chomp(my $id = $self->_forge('click-id', map { "$_=$fields{$_}" } sort keys %fields));
    return $id;
}

# The uuid inside a click_id.
sub uuid_of
{
    my ($self, $click_id) = @_;
    my $bits = '';
    my $alphabet = '0123456789abcdefghjkmnpqrstvwxyz';

    $bits .= sprintf '%05b', index $alphabet, $_ for split //, lc $click_id;
    my $hex = unpack 'H*', pack 'B128', substr $bits, 0, 128;
    return join '-', unpack 'A8 A4 A4 A4 A12', $hex;
}

sub sign
{
    my ($self, $key, %o) = @_;
    my $timestamp = defined $o{timestamp} ? $o{timestamp} : int(time());
    my $idempotency = defined $o{idempotency_key} ? $o{idempotency_key} : '';
    my $text = join "\n", 'v1', $timestamp, $o{method} || 'POST', $o{path} || '/v1/conversions', $idempotency,
        defined $o{body} ? $o{body} : '';

    return (['Affiliate-Key', $key->{id}], ['Affiliate-Timestamp', $timestamp],
        (length $idempotency ? ['Idempotency-Key', $idempotency] : ()),
        ['Affiliate-Signature', 'v1=' . Digest::SHA::hmac_sha256_hex($text, $key->{secret})]);
}

sub call
{
    my ($self, $key, $body, %o) = @_;
    my $path = $o{path} || '/v1/conversions';

    $body = JSON::PP->new->canonical->encode($body) if ref $body;
    $o{idempotency_key} = sprintf 'k-%d-%d', $$, ++$self->{calls} unless exists $o{idempotency_key};
    my @headers = ($self->sign($key, %o, body => $body, path => $path), ['Content-Type', 'application/json'],
        @{ $o{headers} || [] });
    my $r = $self->request('POST', $path, %o, headers => \@headers, body => $body);
    $r->{json} = eval { JSON::PP::decode_json($r->{body}) };
    return $r;
}

sub _percent { my $text = shift; $text =~ s/([^A-Za-z0-9_.~-])/sprintf '%%%02X', ord $1/ge; return $text }

# The query is signed as sent, up to sig, which comes last. %o: ts, idempotency, location, form of sig (sprintf), tail behind it
sub postback
{
    my ($self, $key, $fields, %o) = @_;
    my $ts = $o{ts} || int(time());
    my $query = ref $fields ? join '&', map { "$_=" . _percent($fields->{$_}) } sort keys %$fields : $fields;
    my $target = ($o{location} || '/pb') . "?key=$key->{id}&ts=$ts"
        . (defined $o{idempotency} ? "&idempotency=$o{idempotency}" : '') . "&$query";
    my $text = join "\n", 'v1', $ts, 'GET', $target, $o{idempotency} || '', '';
    my $sig = sprintf $o{form} || 'v1=%s', Digest::SHA::hmac_sha256_hex($text, $key->{secret});
    my $r = $self->request('GET', "$target&sig=$sig" . ($o{tail} || ''));

    $r->{json} = eval { JSON::PP::decode_json($r->{body}) };
    return $r;
}

# --- affiliated ----------------------------------------------------------------------------------------------------

sub daemon_conf
{
    my ($self, %o) = @_;
    my %conf = (
        run => { consumer => 'test', status_socket => $self->path('state/status.sock'), retry_max => '500ms' },
        postgres => { conninfo => 'host=' . ($self->{pg_socket} || $self->path('pgs')) . ' user=' . ($ENV{AFFILIATED_LOGIN} || 'postgres') . ' dbname=affiliate' },
        redis => { address => 'unix:' . ($self->{redis_socket} || $self->path('redis/redis.sock')) },
        keys => { file => $self->{keys} },
        conversions => { resolve_interval => '100ms' },
        holds => { interval => '100ms' },
        projection => { interval => '200ms' },
    );

    $conf{run}{roles} = join ', ', @{ $o{roles} } if $o{roles};
    for my $section (keys %{ $o{conf} || {} }) {
        $conf{$section}{$_} = $o{conf}{$section}{$_} for keys %{ $o{conf}{$section} };
    }
    mkdir $self->path('state');
    $self->_own($self->path('state'), 'postgres');
    return $self->write('affiliated.conf', join '', map {
        my $section = $_;
        "[$section]\n" . join('', map { "$_ = $conf{$section}{$_}\n" } sort keys %{ $conf{$section} })
    } sort keys %conf);
}

# Its own copy: the checkout may be where the unprivileged user can't go.
sub _affiliated
{
    my $self = shift;
    my $copy = $self->path('affiliated');

    if (!-x $copy) {
        my ($code, $out, $err) = $self->run('cp', "$self->{build}/affiliated", $copy);
        die $err if $code;
        chmod 0755, $copy;
    }
    return $copy;
}

sub daemon_start
{
    my ($self, %o) = @_;

    $self->daemon_conf(%o) if %o || !-e $self->path('affiliated.conf');
    $self->{daemon_count}++;
    unlink $self->path('state/status.sock');
    $self->_spawn('daemon', { user => 'postgres', env => $self->_sanitizer_env(0), log => $self->path('daemon.log') },
        $self->_affiliated, '-c', $self->path('affiliated.conf'), 'run');
    $self->wait_until('affiliated', sub { !$self->alive('daemon') || -S $self->path('state/status.sock') });
    die "affiliated does not start:\n" . $self->daemon_log unless $self->alive('daemon');
    return $self;
}

sub daemon_stop
{
    my $self = shift;
    my $ok = $self->_end('daemon', 'TERM', 60);

    Test::More::fail('affiliated stops in time') unless $ok;
    return $ok;
}

sub daemon_kill { my $self = shift; return $self->_end('daemon', 'KILL') }
sub daemon_signal { my ($self, $name) = @_; return kill $name, $self->{processes}{daemon} }

sub cli
{
    my ($self, @arguments) = @_;

    $self->daemon_conf unless -e $self->path('affiliated.conf');
    return $self->run({ user => 'postgres', env => $self->_sanitizer_env(0) },
        $self->_affiliated, '-c', $self->path('affiliated.conf'), @arguments);
}

sub cli_json
{
    my ($self, @arguments) = @_;
    my ($code, $out, $err) = $self->cli(@arguments, '--json');

    die "affiliated @arguments: $err" if $code;
    my @rows = map { JSON::PP::decode_json($_) } split /\n/, $out;
    return wantarray ? @rows : $rows[0];
}

sub migrate
{
    my $self = shift;
    my ($code, $out, $err) = $self->cli('migrate');

    die "affiliated migrate: $out$err" if $code;
    return $self;
}

sub world
{
    my ($self, %o) = @_;
    my %w;

    $w{merchant} = $self->cli_json(qw(merchant create --name Shop --host 127.0.0.1 --host localhost))->{merchant};
    $w{affiliate} = $self->cli_json(qw(affiliate create --name Asha --email asha@example.com))->{affiliate};
    $w{campaign} = $self->cli_json('campaign', 'create', '--merchant', $w{merchant}, '--name', 'Everything',
        '--currency', 'NPR', '--rate-basis-points', $o{rate} || 1000, '--fee-basis-points', defined $o{fee} ? $o{fee} : 2000,
        '--hold', $o{hold} || '1 second', @{ $o{terms} || [] })->{campaign};
    my @link = ('link', 'create', '--merchant', $w{merchant}, '--campaign', $w{campaign}, '--affiliate', $w{affiliate},
        '--url', $o{url} || 'http://127.0.0.1/shop');
    $w{link} = $self->cli_json(@link)->{code};
    $w{test_link} = $self->cli_json(@link, '--livemode', 'false')->{code};
    for my $mode ([key => 'true'], [test_key => 'false']) {
        my $key = $self->cli_json('key', 'create', '--merchant', $w{merchant}, '--livemode', $mode->[1]);
        $w{ $mode->[0] } = { id => $key->{key}, secret => $key->{secret}, merchant => $w{merchant} };
    }
    return \%w;
}

# -------------------------------------------------------------------------------------------------------------------

package Affiliated::Test::Connection;

use Time::HiRes qw(time);

sub send
{
    my ($self, $bytes) = @_;
    my $offset = 0;

    while ($offset < length $bytes) {
        my $sent = syswrite $self->{socket}, $bytes, length($bytes) - $offset, $offset;
        return 0 unless defined $sent;
        $offset += $sent;
    }
    return 1;
}

# One response: a status of 0 when the connection ended or the time ran out before there was one.
sub response
{
    my ($self, %o) = @_;
    my $end = time() + ($o{timeout} || 20);
    my $more = sub {
        my $left = $end - time();
        return 0 if $left <= 0 || !IO::Select->new($self->{socket})->can_read($left);
        my $n = sysread $self->{socket}, $self->{buffer}, 65536, length $self->{buffer};
        return $n ? 1 : 0;
    };
    my %r = (status => 0, headers => {}, lines => [], body => '', raw => '');

    until ($self->{buffer} =~ /\r\n\r\n/) {
        if (!$more->()) {
            $r{raw} = $self->{buffer};
            return \%r;
        }
    }
    $self->{buffer} =~ s/\A(.*?)\r\n\r\n//s;
    my ($status, @lines) = split /\r\n/, $1;
    $r{raw} = "$status\r\n" . join("\r\n", @lines) . "\r\n\r\n";
    ($r{status}) = $status =~ m{^HTTP/1\.[01] (\d+)};
    for my $line (@lines) {
        my ($name, $value) = split /:\s*/, $line, 2;
        push @{ $r{lines} }, [$name, $value];
        $r{headers}{ lc $name } = $value unless exists $r{headers}{ lc $name };
    }
    if ($o{head} || $r{status} == 304 || $r{status} == 204 || $r{status} < 200) {
        $r{body} = '';
    } elsif (defined $r{headers}{'content-length'}) {
        my $length = $r{headers}{'content-length'};
        while (length $self->{buffer} < $length) { $more->() or last }
        $r{body} = substr $self->{buffer}, 0, $length, '';
    } elsif (($r{headers}{'transfer-encoding'} || '') eq 'chunked') {
        while (1) {
            until ($self->{buffer} =~ /\A([0-9a-f]+)\r\n/i) { $more->() or return \%r }
            my $length = hex $1;
            my $head = length($1) + 2;
            while (length $self->{buffer} < $head + $length + 2) { $more->() or return \%r }
            $r{body} .= substr $self->{buffer}, $head, $length;
            substr($self->{buffer}, 0, $head + $length + 2) = '';
            last unless $length;
        }
    } else {
        1 while $more->();
        $r{body} = $self->{buffer};
        $self->{buffer} = '';
    }
    $r{raw} .= $r{body};
    return \%r;
}

sub close { my $self = shift; return CORE::close $self->{socket} }

# Closes with RST.
sub reset
{
    my $self = shift;

    setsockopt $self->{socket}, Socket::SOL_SOCKET(), Socket::SO_LINGER(), pack('ii', 1, 0);
    return CORE::close $self->{socket};
}

# -------------------------------------------------------------------------------------------------------------------

package Affiliated::Test::Stub;

use Socket qw(SOL_SOCKET SO_LINGER);
use Time::HiRes qw(sleep);

my $count = 0;

sub new
{
    my ($class, $test, %o) = @_;
    my $name = 'stub' . ++$count;
    my $self = bless { test => $test, name => $name, reply => $o{reply} }, $class;
    my $listen;

    if (($o{listen} || 'unix') eq 'tcp') {
        my $port = $test->port;
        $listen = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => $port, Listen => 128, ReuseAddr => 1);
        $self->{address} = "127.0.0.1:$port";
    } else {
        my $path = $test->path("$name.sock");
        $listen = IO::Socket::UNIX->new(Local => $path, Listen => 128);
        chmod 0777, $path;
        $self->{address} = "unix:$path";
    }
    die "stub: $!\n" unless $listen;
    $self->mode($o{mode} || 'pass');

    my $pid = fork;
    die "fork: $!\n" unless defined $pid;
    if (!$pid) {
        setpgrp;
        $SIG{$_} = 'DEFAULT' for qw(INT TERM HUP);
        eval { $self->_serve($listen) };
        print STDERR "# stub: $@" if $@;
        POSIX::_exit(0);
    }
    $test->{processes}{$name} = $pid;
    return $self;
}

sub address { return $_[0]{address} }

sub mode
{
    my ($self, $mode) = @_;
    my $path = $self->{test}->path("$self->{name}.mode");

    $self->{test}->write("$path.new", $mode);
    rename "$path.new", $path;
}

sub commands
{
    my $self = shift;
    return map { JSON::PP->new->latin1->decode($_) } split /\n/,
        $self->{test}->slurp($self->{test}->path("$self->{name}.commands"));
}

sub stop { my $self = shift; return $self->{test}->_end($self->{name}, 'KILL') }

sub _serve
{
    my ($self, $listen) = @_;
    my $select = IO::Select->new($listen);
    my %by;

    open my $log, '>>', $self->{test}->path("$self->{name}.commands");
    $log->autoflush(1);
    while (1) {
        my $mode = $self->{test}->slurp($self->{test}->path("$self->{name}.mode"));

        # A new mode also holds for connections that are there.
        for my $ready ($select->can_read(0.05)) {
            if ($ready == $listen) {
                my $client = $listen->accept or next;
                if ($mode eq 'refuse') {
                    CORE::close $client;
                    next;
                }
                my $server = IO::Socket::UNIX->new(Peer => $self->{test}{redis_socket});
                my $pair = { client => $client, server => $server, in => '' };
                $by{$client} = $pair;
                $select->add($client);
                if ($server) {
                    $by{$server} = $pair;
                    $select->add($server);
                }
                next;
            }
            my $pair = $by{$ready} or next;
            my $n = sysread $ready, my $bytes, 65536;
            if (!$n || $mode eq 'refuse') {
                $self->_drop($pair, $select, \%by);
            } elsif ($ready == $pair->{client}) {
                $pair->{in} .= $bytes;
                $self->_commands($pair, $mode, $log, $select, \%by);
            } else {
                $self->_deliver($pair, $bytes, $mode, $select, \%by);
            }
        }
    }
}

sub _drop
{
    my ($self, $pair, $select, $by) = @_;

    for my $socket (grep { $_ } @$pair{qw(client server)}) {
        $select->remove($socket);
        delete $by->{$socket};
        CORE::close $socket;
    }
}

# Takes whole commands out of what came.
sub _commands
{
    my ($self, $pair, $mode, $log, $select, $by) = @_;

    while ($pair->{in} =~ /\A\*(\d+)\r\n/) {
        my $pos = $+[0];
        my @words;
        for (1 .. $1) {
            substr($pair->{in}, $pos) =~ /\A\$(\d+)\r\n/ or return;
            my $start = $pos + $+[0];
            return if length $pair->{in} < $start + $1 + 2;
            push @words, substr $pair->{in}, $start, $1;
            $pos = $start + $1 + 2;
        }
        my $raw = substr $pair->{in}, 0, $pos, '';
        print $log JSON::PP->new->latin1->encode(\@words), "\n";
        my $own = $self->{reply} ? $self->{reply}->(\@words) : undef;
        if (defined $own) {
            $self->_send($pair, $own, $mode);
        } elsif ($pair->{hung} || $mode eq 'hang') {
            $pair->{hung} = 1;
        } elsif ($mode eq 'loading') {
            $self->_send($pair, "-LOADING Redis is loading the dataset in memory\r\n", 'pass');
        } elsif ($mode eq 'oom') {
            $self->_send($pair, "-OOM command not allowed when used memory > 'maxmemory'.\r\n", 'pass');
        } elsif ($mode eq 'garbage') {
            $self->_send($pair, "HTTP/1.1 400 Bad Request\r\n\r\n\0\xff\$-7\r\n", 'pass');
        } elsif ($mode eq 'array') {
            $self->_send($pair, "*1073741823\r\n", 'pass');
        } elsif ($mode eq 'arrays') {
            $self->_send($pair, "*60000\r\n" . "*60000\r\n" x 4000, 'pass');
        } elsif ($mode eq 'endless') {
            syswrite $pair->{client}, "\$1073741823\r\n";
            for (1 .. 80) {
                syswrite $pair->{client}, "x" x (1 << 20) or last;
            }
        } elsif ($mode eq 'big') {
            $self->_send($pair, "\$20480\r\n" . ('x' x 20480) . "\r\n", 'pass') for 1;
        } elsif ($pair->{server}) {
            syswrite $pair->{server}, $raw;
        } else {
            $self->_drop($pair, $select, $by);
            return;
        }
    }
}

sub _deliver
{
    my ($self, $pair, $bytes, $mode, $select, $by) = @_;

    # A connection that swallowed something stays so: its later replies would be taken for the missing ones.
    $pair->{hung} = 1 if $mode eq 'hang';
    return if $pair->{hung};
    if ($mode eq 'rst') {
        syswrite $pair->{client}, substr $bytes, 0, length($bytes) / 2;
        setsockopt $pair->{client}, SOL_SOCKET, SO_LINGER, pack('ii', 1, 0);
        $self->_drop($pair, $select, $by);
        return;
    }
    $self->_send($pair, $bytes, $mode);
    syswrite $pair->{client}, "+EXTRA\r\n" if $mode eq 'extra';
}

sub _send
{
    my ($self, $pair, $bytes, $mode) = @_;
    my $size = $mode eq 'split' ? 1 : 4096;

    while (length $bytes) {
        my $piece = substr $bytes, 0, $mode eq 'split' ? 1 + int(rand(length($bytes) > 200 ? 997 : 7)) : 4096, '';
        syswrite $pair->{client}, $piece or return;
        sleep 0.002 if length $bytes && ($mode eq 'split' || $size > 1 && length $bytes > 8192);
    }
}

1;
