# The configuration file: what is wrong is told with its line, the example documents every setting, and a reload takes
# all of a file or nothing of it.

use Affiliated::Test;
use Affiliated::Daemon;

my $t = Affiliated::Test->new;

$t->redis_start;
$t->pg_start(conf => 'fsync = on');
my $good = $t->slurp($t->daemon_conf);

sub check
{
    $t->write('affiliated.conf', shift);
    return $t->cli('-t');
}

# --- mistakes ---------------------------------------------------------------------------------------------------------------

$t->write('empty-password', "\n");
for my $case (
    ["[clicks]\nthreds = 2\n", 2, qr/unknown setting threds in \[clicks\]/],
    ["[click]\n", 1, qr/unknown section \[click\]/],
    ["[clicks\n", 1, qr/\[name\]/],
    ["threads = 2\n", 1, qr/before the first \[section\]/],
    ["[clicks]\nthreads\n", 2, qr/neither \[section\] nor name = value/],
    ["[clicks]\nthreads = 2\nthreads = 3\n", 3, qr/set before, in line 2/],
    ["[clicks]\nthreads = 0\n", 2, qr/clicks\.threads.*1.*8/],
    ["[clicks]\nthreads = 9\n", 2, qr/clicks\.threads/],
    ["[clicks]\nthreads = two\n", 2, qr/clicks\.threads/],
    ["[clicks]\nthreads = 99999999999999999999\n", 2, qr/clicks\.threads/],
    ["[clicks]\nbatch_bytes = 1k\n", 2, qr/clicks\.batch_bytes/],
    ["[clicks]\nbatch_bytes = 4x\n", 2, qr/clicks\.batch_bytes/],
    ["[clicks]\nbatch_delay = 5\n", 2, qr/clicks\.batch_delay/],
    ["[clicks]\nbatch_delay = -5s\n", 2, qr/clicks\.batch_delay/],
    ["[log]\nformat = xml\n", 2, qr/log\.format.*plain.*json/],
    ["[redis]\nstreams = 65\n", 2, qr/redis\.streams/],
    ["[redis]\naddress = somewhere\n", undef, qr/neither unix:\/path nor host:port/],
    ["[redis]\nuser = me\n", undef, qr/redis\.user needs redis\.password_file/],
    ["[redis]\npassword_file = /does/not/exist\n", 2, qr{/does/not/exist: No such file}],
    ["[redis]\npassword_file = $t->{dir}/empty-password\n", 2, qr/is empty/],
    ["[run]\nretry_min = 10s\nretry_max = 1s\n", undef, qr/retry_min is greater than run\.retry_max/],
    ["[postgres]\nconninfo =\n", 2, qr/postgres\.conninfo/],
    ["[run]\nroles = clicks, payouts,\n# \0\n", undef, qr/NUL/],
    ["[run]\nroles = api\nstall_limit = 1m\n", undef, qr/export_timeout/],
    ["[api]\nsocket_mode = 0689\n", undef, qr/octal/],
    )
{
    my ($text, $line, $error) = @$case;
    my ($code, $out, $err) = check($text);
    my $where = defined $line ? qr/^\Q$t->{dir}\E\/affiliated\.conf:$line: / : qr/^\Q$t->{dir}\E\/affiliated\.conf/;
    (my $name = $text) =~ s/[\n\0]/ /g;

    is($code, 2, "a mistake of the configuration: $name");
    ok($err =~ $where && $err =~ $error, 'told with file and line') or diag $err;
}
my ($code, $out, $err) = check("[clicks]\nthreads = 0\n[log]\nlevel = loud\n");
is(scalar(split /\n/, $err), 2, 'every mistake is told, not the first alone');
($code, $out, $err) = check("[postgres]\nhunter2\n");
unlike($err, qr/hunter2/, 'a line that may be a secret is not shown');
for my $conninfo ("host=/tmp pass word=hunter2", "host=/tmp password='hunter2", 'postgresql://me:hunter2@[::1') {
    ($code, $out, $err) = check("[postgres]\nconninfo = $conninfo\n");
    is($code, 1, 'a connection string with a slip');
    like($out, qr/FAIL.*postgres\.conninfo: not "name=value/, 'is told by the name of its setting');
    unlike("$out$err", qr/hunter2/, 'and not shown');
    ($code, $out, $err) = check("[run]\nroles = api\n[api]\nconninfo = $conninfo\n");
    like($out, qr/FAIL.*api\.conninfo: not "name=value/, 'so is the one of the API');
    unlike("$out$err", qr/hunter2/, 'nor is that shown');
}
($code, $out, $err) = check("[run]\nroles = clicks, payout\n");
is($code, 1, 'a role that there is not');
like($out, qr/FAIL.*no role "payout"/, 'is named');
($code, $out, $err) = $t->cli('-c', '/does/not/exist', 'status');
is($code, 2, 'a file that is not there');
like($err, qr{^/does/not/exist: No such file}, 'is named');

# --- check ----------------------------------------------------------------------------------------------------------------------

($code, $out, $err) = check($good);
is($code, 1, 'check fails');
like($out, qr/FAIL .*no partition for clicks/, 'where today has no partition');
$t->psql('select affiliate.maintain_partitions(2, 0)');
$t->redis('CONFIG', 'SET', 'maxmemory-policy', 'noeviction');
($code, $out, $err) = check($good);
is($code, 0, 'check finds nothing') or diag "$out$err";
like($out, qr/^ok    schema version \d+$/m, 'it looked at the schema');
like($out, qr/^ok    Redis runs scripts/m, 'and at Redis');
$t->redis('CONFIG', 'SET', 'maxmemory-policy', 'allkeys-lru');
chmod 0644, $t->{keys};
($code, $out, $err) = check($good);
is($code, 1, 'it fails');
like($out, qr/FAIL .*maxmemory-policy is allkeys-lru/, 'if streams could be evicted');
like($out, qr/FAIL .*everybody may read/, 'if everybody may read the master keys');
chmod 0600, $t->{keys};
$t->redis('CONFIG', 'SET', 'maxmemory-policy', 'noeviction');
($code, $out, $err) = check(($good =~ s/^host=.*//mr) =~ s/host=\S+/host=\/nowhere/r);
is($code, 1, 'it fails');
like($out, qr/FAIL  PostgreSQL: /, 'without PostgreSQL, and goes on');
like($out, qr/^ok    Redis is a master/m, 'with Redis');

# --- the example -----------------------------------------------------------------------------------------------------------------

($code, $out) = $t->cli('-T');
is($code, 0, '-T prints every setting');
my $example = $t->slurp("$Affiliated::Test::TOP/conf.examples/affiliated.conf");
my %printed = map { $_ => 1 } split /\n/, $out;
my %written = map { $_ => 1 } split /\n/, $example;
is_deeply([sort grep { !$written{$_} } keys %printed], [], 'the example has every line of it');
my $section = '';
my %known;
for (split /\n/, $out) {
    $section = $1 if /^\[(\w+)\]/;
    $known{"$section.$1"} = 1 if /^#(\w+) =/;
}
my @strange;
for (split /\n/, $example) {
    $section = $1 if /^\[(\w+)\]/;
    push @strange, "$section.$1" if /^#?(\w+) =/ && !$known{"$section.$1"};
}
is_deeply(\@strange, [], 'and no setting that there is not');
cmp_ok(scalar keys %known, '>', 30, 'of all of them');

# --- reload -----------------------------------------------------------------------------------------------------------------------

$t->write('affiliated.conf', $good);
$t->daemon_start;
my $seed = $t->{seed} % 1000;
produce($t, seed => $seed, count => 10);
$t->wait_until('clicks', sub { clicks($t) == 10 });
$t->write('affiliated.conf', $good . "[log]\nlevel = verbose\n");
$t->daemon_signal('HUP');
ok($t->wait_until('refusal', sub { $t->daemon_log =~ /the old configuration stays in force/ }), 'a reload with a mistake changes nothing');
like($t->daemon_log, qr/affiliated\.conf:\d+: log\.level/, 'and tells file and line');
$t->write('affiliated.conf', "$good\n[log]\nlevel = debug\n" =~ s/\[redis\]\n/[redis]\nstreams = 2\n/r);
$t->daemon_signal('HUP');
ok($t->wait_until('the reload', sub { $t->daemon_log =~ /new configuration in force/ }), 'one without is taken');
like($t->daemon_log, qr/needs a restart to take effect: redis\.streams/, 'but for what needs a restart, which is named');
produce($t, seed => $seed + 1, count => 10);
ok($t->wait_until('clicks', sub { clicks($t) == 20 }), 'the roles work on');
ok($t->wait_until('debug', sub { $t->daemon_log =~ / debug clicks/ }), 'with the new configuration');
my $keys = $t->slurp($t->{keys});
$t->write($t->{keys}, "no key at all\n");
$t->daemon_signal('HUP');
ok($t->wait_until('refusal', sub { (() = $t->daemon_log =~ /the old configuration stays/g) == 2 }), 'a key file that is none is refused');
produce($t, seed => $seed + 2, count => 10, key_file => $t->write('keys-good', $keys));
ok($t->wait_until('clicks', sub { clicks($t) == 30 }), 'and the keys that are known stay in use');
done_testing();
