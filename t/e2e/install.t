# make install puts everything where the example files look for it; the module also builds in a plain nginx source tree.

use Affiliated::Test;

my $t = Affiliated::Test->new;
my $top = $Affiliated::Test::TOP;
my $root = $t->path('root');

# --- make install --------------------------------------------------------------------------------------------------------

my ($code, $out, $err) = $t->run({ dir => $top }, 'make', '-s', 'install', "DESTDIR=$root", 'PREFIX=/usr');
is($code, 0, 'make install') or diag "$out$err";

for my $file (qw(lib/nginx/modules/ngx_http_affiliate_module.so sbin/affiliated lib/systemd/system/affiliated.service
    lib/sysusers.d/affiliated.conf lib/tmpfiles.d/affiliated.conf share/doc/affiliated/README.md
    share/doc/affiliated/examples/nginx-minimal.conf share/doc/affiliated/examples/merchant/sign.sh
    share/doc/affiliated/guide.md share/doc/affiliated/openapi.yaml))
{
    ok(-s "$root/usr/$file", "/usr/$file");
}

ok(-x "$root/usr/sbin/affiliated", 'the daemon may be run');
my ($program) = $t->slurp("$root/usr/lib/systemd/system/affiliated.service") =~ m{^ExecStart=(\S+)}m;
ok(-x "$root$program", "where the unit looks for it: $program");
for my $example (qw(nginx-minimal nginx-full)) {
    my ($module) = $t->slurp("$root/usr/share/doc/affiliated/examples/$example.conf") =~ m{^load_module (\S+);}m;
    ok(-s "$root$module", "the installed $example.conf loads the installed module: $module");
}
($code, $out) = $t->run("$root/usr/sbin/affiliated", '-V');
like($out, qr/^affiliated \d+\.\d+\.\d+$/m, 'it tells its version');

$t->{module} = "$root/usr/lib/nginx/modules/ngx_http_affiliate_module.so";
$t->nginx_start(affiliate => 0, server => 'location = /plain { return 204; }');
is($t->get('/plain')->{status}, 204, 'nginx loads the installed module');
$t->nginx_stop;

# --- a plain source tree ---------------------------------------------------------------------------------------------------

SKIP: {
    my $source = $ENV{NGINX_SRC} || '/usr/share/nginx/src';
    my $tree = $t->path('nginx-source');

    skip 'there are no sources of nginx', 3 unless -x "$source/configure";

    $t->run('cp', '-rL', $source, $tree);
    ($code, $out, $err) = $t->run({ dir => $tree }, './configure', '--with-compat', "--add-dynamic-module=$top");
    is($code, 0, './configure --with-compat --add-dynamic-module') or diag substr("$out$err", -2000);
    ($code, $out, $err) = $t->run({ dir => $tree }, 'make', '-s', '-f', 'objs/Makefile', 'modules');
    is($code, 0, 'make modules') or diag substr("$out$err", -2000);

    $t->{module} = "$tree/objs/ngx_http_affiliate_module.so";
    $t->nginx_start(affiliate => 0, server => 'location = /plain { return 204; }');
    is($t->get('/plain')->{status}, 204, 'nginx loads what was built there');
}

done_testing();
