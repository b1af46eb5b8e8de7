# What conf.examples/ holds is taken by the programs that it is for.

use Affiliated::Test;

my $t = Affiliated::Test->new;
my $examples = "$Affiliated::Test::TOP/conf.examples";

sub installed
{
    my $name = shift;
    return (grep { -x } map { "$_/$name" } split /:/, "$ENV{PATH}:/usr/sbin:/sbin")[0];
}

# --- nginx -------------------------------------------------------------------------------------------------------------

for my $name (qw(nginx-minimal nginx-full nginx-api)) {
    my $conf = $t->slurp("$examples/$name.conf");

    $conf =~ s{modules/ngx_http_affiliate_module\.so}{$t->{module}};
    $conf =~ s{/etc/affiliated/keys}{$t->{keys}};
    $conf =~ s{/var/lib/nginx/affiliate}{$t->path("spool-$name")}e;
    $conf =~ s{/var/log/nginx}{$t->{dir}}g;
    $conf =~ s{(listen\s+(?:127\.0\.0\.1:)?)\d+}{$1 . $t->port}ge;
    $conf =~ s/^user .*\n//m unless $> == 0;
    $t->write('nginx.conf', "pid $t->{dir}/nginx.pid;\n$conf");
    my ($code, $out) = $t->nginx_test;
    is($code, 0, "nginx -t takes $name.conf") or diag $out;
    unlike($out, qr/\[(?:warn|error)\]/, 'without a warning');
}

# --- affiliated ----------------------------------------------------------------------------------------------------------

{
    my $conf = $t->slurp("$examples/affiliated.conf");

    my ($code, $out, $err) = $t->cli('-V');
    $t->write('affiliated.conf', $conf);
    ($code, $out, $err) = $t->cli('status');
    is($code, 1, 'affiliated takes affiliated.conf, and then finds no daemon') or diag $err;
    unlike($err, qr/affiliated\.conf:\d+/, 'no line of it is wrong');

    # Each setting stands in the example with the default that the program has.
    ($code, $out, $err) = $t->cli('-T');
    is($code, 0, 'affiliated -T prints every setting');
    my %known = map { $_ => 1 } $out =~ /^#?(\w+) =/mg;
    my @unknown = grep { !$known{$_} } $conf =~ /^#?(\w+) =/mg;
    is("@unknown", '', 'the example has none that is not there');
}

# --- Redis -----------------------------------------------------------------------------------------------------------------

{
    my $conf = $t->slurp("$examples/redis.conf");

    $conf =~ s/^(port|unixsocket|unixsocketperm|dir|supervised|daemonize|logfile|pidfile) .*\n//mg;
    $t->redis_start(args => ['--include', $t->write('redis.conf', $conf)]);
    is($t->redis('CONFIG', 'GET', 'maxmemory-policy')->[1], 'noeviction', 'Redis takes redis.conf: nothing is evicted');
    is($t->redis('CONFIG', 'GET', 'maxmemory')->[1] > 0 ? 1 : 0, 1, 'memory is limited');
    $t->redis_stop;
}

# --- PostgreSQL --------------------------------------------------------------------------------------------------------------

{
    my $conf = $t->slurp("$examples/postgresql.conf");

    # What the machine of a test does not have.
    $conf =~ s/^(shared_buffers|effective_cache_size|huge_pages) .*\n//mg;
    $t->pg_start(conf => $conf);
    is($t->value('show synchronous_commit'), 'on', 'PostgreSQL takes postgresql.conf: what is committed is on disk');
    is($t->value('show fsync'), 'on', 'with fsync');
    is($t->value('select count(*) from pg_file_settings where error is not null'), 0, 'no setting is wrong');
    $t->pg_stop;
}

# --- systemd -----------------------------------------------------------------------------------------------------------------

SKIP: {
    my $analyze = installed('systemd-analyze');

    skip 'systemd is not installed', 5 unless $analyze;

    my ($code, $out, $err) = $t->run($analyze, 'security', '--offline=true', '--threshold=15', '--no-pager',
        "$examples/affiliated.service");
    is($code, 0, 'the unit is exposed by at most 1.5') or diag "$out$err";
    unlike("$out$err", qr/(?:Unknown|Failed to parse)/, 'and has no setting that systemd does not know');

    my $root = $t->path('root');
    mkdir $_ for $root, "$root/etc";
    ($code, $out, $err) = $t->run(installed('systemd-sysusers'), "--root=$root", "$examples/affiliated.sysusers.conf");
    is($code, 0, 'systemd-sysusers takes its file') or diag "$out$err";
    like($t->slurp("$root/etc/passwd"), qr/^affiliated:/m, 'and makes the user');
    like($t->slurp("$root/etc/group"), qr/^redis:[^:]*:\d+:affiliated$/m, 'which Redis lets in');
}

# --- Prometheus --------------------------------------------------------------------------------------------------------------

SKIP: {
    my $promtool = installed('promtool');

    skip 'promtool is not installed', 1 unless $promtool;

    my ($code, $out, $err) = $t->run($promtool, 'check', 'rules', "$examples/prometheus-alerts.yml");
    is($code, 0, 'promtool takes the alerts') or diag "$out$err";
}

done_testing();
