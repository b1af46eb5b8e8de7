# affiliated migrate: from nothing, by a user without any privilege, once; and what it refuses.

use Affiliated::Test;

my $t = Affiliated::Test->new;

$t->redis_start;
$t->pg_start(empty => 1, conf => 'fsync = on');
$t->psql('create role owner login; alter database affiliate owner to owner', db => 'postgres');
$t->daemon_conf(conf => { postgres => { conninfo => "host=$t->{pg_socket} user=owner dbname=affiliate" } });

my @files = map { m{([^/]+)\.sql$} } sort glob "$Affiliated::Test::TOP/sql/*.sql";
my ($code, $out, $err) = $t->cli('check');
is($code, 1, 'check of an empty database fails');
like($out, qr/FAIL  schema version 0, \d+ is needed: run `affiliated migrate`/, 'and says what to do');
($code, $out, $err) = $t->cli('merchant', 'list');
is($code, 1, 'so does a command');
like($err, qr/see `affiliated check`/, 'which names check');

($code, $out, $err) = $t->cli('migrate');
is($code, 1, 'the owner of the database needs a role that only a superuser can make');
like($err, qr/016_api|api: .*create role affiliate_tenant nologin; grant affiliate_tenant to owner;/, 'and is told how');
my @before = split /\n/, $out;
is_deeply(\@before, [@files[0 .. 14]], 'what comes before it is done');
$t->psql('create role affiliate_tenant nologin; grant affiliate_tenant to owner');
($code, $out, $err) = $t->cli('migrate');
is($code, 0, 'and no other privilege') or diag $err;
is($out, join('', map { "$_\n" } @files[15 .. $#files], 'schema version ' . @files), 'every step is named');
is_deeply([map { "$_->[0] $_->[1]" } $t->rows('select version, name from affiliate.schema_version order by 1')],
    [map { "$_ $files[$_ - 1]" } 1 .. @files], 'and noted');
($code, $out, $err) = $t->cli('migrate');
is($code, 0, 'a second time');
is($out, 'schema version ' . @files . "\n", 'nothing is done');

# What the harness makes of the same files, by psql, is the same schema.
my $columns = q{select table_name || '.' || column_name || ' ' || data_type from information_schema.columns
    where table_schema = 'affiliate' and table_name !~ '^click_' order by 1};
my $functions = q{select p.oid::regprocedure::text from pg_proc p where p.pronamespace = 'affiliate'::regnamespace order by 1};
my @by_migrate = ($t->psql($columns), $t->psql($functions));
my $other = Affiliated::Test->new;
$other->pg_start;
is_deeply(\@by_migrate, [$other->psql($columns), $other->psql($functions)], 'the schema is that of the files');
$other->pg_stop;

# --- the daemon as that user ------------------------------------------------------------------------------------------------------

$t->daemon_start;
$t->wait_until('up', sub {
    my ($code, $out) = $t->cli('status', '--json');
    return $code == 0;
});
($code, $out, $err) = $t->cli('status');
is($code, 0, 'every role works without any privilege') or diag $out;
($code, $out, $err) = $t->cli('check');
is($code, 0, 'and check is content') or diag $out;
$t->daemon_stop;

# --- a part of it, and two at once ----------------------------------------------------------------------------------------------------

$t->psql('drop schema affiliate cascade');
my @pids = map {
    my $pid = fork;
    die $! unless defined $pid;
    if (!$pid) {
        my ($code) = $t->cli('migrate');
        POSIX::_exit($code);
    }
    $pid;
} 1 .. 2;
my @codes = map { waitpid $_, 0; $? >> 8 } @pids;
is_deeply(\@codes, [0, 0], 'two at once: one waits for the other');
is($t->value('select count(*) from affiliate.schema_version'), scalar @files, 'each step once');

# --- refusals --------------------------------------------------------------------------------------------------------------------------

$t->psql("update affiliate.schema_version set checksum = repeat('0', 64) where version = 3");
($code, $out, $err) = $t->cli('migrate');
is($code, 1, 'a step that was applied in another form is refused');
like($err, qr/$files[2] was applied in another form/, 'and named');
($code, $out, $err) = $t->cli('check');
like($out, qr/FAIL  schema: $files[2] /, 'by check, too');
$t->psql("insert into affiliate.schema_version values (999, 'from_the_future', '')");
($code, $out, $err) = $t->cli('migrate');
is($code, 1, 'a schema that is newer is refused');
like($err, qr/schema version 999, this program knows \d+/, 'and its version told');
($code, $out, $err) = $t->cli('migrate', 'now');
is($code, 2, 'it takes no argument');
done_testing();
