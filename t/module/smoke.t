# The module loads, alone and beside another module that brings its own hiredis; unconfigured it changes nothing.

use Affiliated::Test;

my $plain = 'location = /plain { return 204; }';

# --- loaded and not configured ---------------------------------------------------------------------------------------

{
    my $t = Affiliated::Test->new;

    $t->nginx_start(affiliate => 0, server => $plain);
    is($t->get('/plain')->{status}, 204, 'loaded and not configured: other locations are served');
    is($t->get('/r/abc')->{status}, 404, 'there is no location of ours');
    ok(!-e $t->path('spool'), 'no spool');
    unlike($t->error_log, qr/\baffiliate\b/, 'not a word in the log');
    $t->nginx_reload;
    is($t->get('/plain')->{status}, 204, 'reloads');
    $t->finish;
}

# --- no http at all, and one that is empty ---------------------------------------------------------------------------

{
    my $t = Affiliated::Test->new;
    my $user = $> == 0 ? 'user www-data;' : '';

    $t->nginx_start(no_listen => 1, conf => "load_module %%MODULE%%;\n$user\nevents { }\n");
    ok($t->alive('nginx'), 'loaded without http');
    $t->nginx_reload;
    $t->finish;
}

# --- what the daemon would not read ------------------------------------------------------------------------------------

for my $case ([64, 0], [65, 1]) {
    my ($streams, $code) = @$case;
    my $t = Affiliated::Test->new;

    $t->nginx_conf(http => "affiliate_streams $streams;");
    is(($t->nginx_test)[0], $code, "affiliate_streams $streams: " . ($code ? 'more than affiliated reads' : 'as many as affiliated reads'));
    $t->finish;
}

# --- what is wrong is told with the rule -------------------------------------------------------------------------------

for my $case (
    ['affiliate_batch records=0;', 'records=0', 'must be 1 to 65536 records'],
    ['affiliate_batch size=1k;', 'size=1k', 'must be 32816 bytes to 1m'],
    ['affiliate_batch delay=2s;', 'delay=2s', 'must be 1ms to 1s'],
    ['affiliate_batch records=9 records=9;', 'records=9', 'is none of .*, each given once'],
    ['affiliate_address_rate rate=20000r/s;', 'rate=20000r/s', 'must be 1r/m to 600000r/m'],
    ['affiliate_address_rate rate=20r/s burst=-1;', 'burst=-1', 'must be 0 to 1000000'],
    ['affiliate_address_rate on;', 'on', 'is neither "off" alone'],
    )
{
    my ($directive, $parameter, $rule) = @$case;
    my $t = Affiliated::Test->new;

    $t->nginx_conf(http => $directive);
    my ($code, $out) = $t->nginx_test;
    like($out, qr/\[emerg\].*"\Q$parameter\E" $rule/, $directive);
    $t->finish;
}

{
    my $t = Affiliated::Test->new;

    $t->nginx_conf(spool => 'sync=0');
    like(($t->nginx_test)[1], qr/\[emerg\].*"sync=0" must be a time above 0, or "off"/, 'affiliate_spool sync=0');
    $t->finish;
}

# --- the variables exist, and are empty where no location of ours was --------------------------------------------------

{
    my $t = Affiliated::Test->new;

    $t->nginx_start(affiliate => 0, server => <<'END');
        location = /variables {
            return 200 "[$affiliate_click_id$affiliate_code$affiliate_cache_status$affiliate_verdict$affiliate_lookup_time$affiliate_spool_status]";
        }
END
    is($t->get('/variables')->{body}, '[]', 'variables are empty in a location of somebody else');
    $t->finish;
}

# --- configured, and in use --------------------------------------------------------------------------------------------

{
    my $t = Affiliated::Test->new;
    my $r;

    $t->redis_start;
    $t->nginx_start(server => $plain);
    $t->link(code => 'abc', url => 'http://127.0.0.1/shop?a=1#f');
    is($t->get('/plain')->{status}, 204, 'configured: other locations are served');
    $r = $t->get('/r/abc');
    is($r->{status}, 302, 'a link redirects');
    like($r->{headers}{location}, qr{^http://127\.0\.0\.1/shop\?a=1&affiliate_click_id=[0-9a-z]{39}#f$}, 'with a click_id');
    is($r->{headers}{'set-cookie'}, undef, 'no cookie');
    $t->finish;
}

# --- beside nchan, which carries another hiredis and is opened with RTLD_GLOBAL ------------------------------------------

SKIP: {
    my ($nchan) = grep { -e } '/usr/lib/nginx/modules/ngx_nchan_module.so';

    skip 'libnginx-mod-nchan is not installed', 4 unless $nchan;

    for my $order (0, 1) {
        my $t = Affiliated::Test->new;
        my @load = map { "load_module $_;" } $order ? ($nchan, $t->{module}) : ($t->{module}, $nchan);

        $t->redis_start;
        $t->nginx_conf(server => <<'END', http => 'upstream nchan_redis { nchan_redis_server redis://127.0.0.1:%%REDIS_PORT%%/; }');
        location = /nchan {
            nchan_pubsub;
            nchan_channel_id channel;
            nchan_redis_pass nchan_redis;
        }
END
        my $conf = $t->slurp($t->path('nginx.conf'));
        $conf =~ s/^load_module [^;]*;/join "\n", @load/me;
        $t->write('nginx.conf', $conf);
        $t->nginx_start;
        $t->link(code => 'abc');
        is($t->get('/r/abc')->{status}, 302, "beside nchan, order $order: a link redirects");
        # It answers 503 until its own connection is there.
        ok($t->wait_until('nchan', sub { $t->request('POST', '/nchan', body => 'hello')->{status} =~ /^20[12]$/ }),
            "beside nchan, order $order: nchan publishes through Redis");
        $t->finish;
    }
}

# --- what it exports ---------------------------------------------------------------------------------------------------

{
    my $t = Affiliated::Test->new;
    my ($code, $out) = $t->run('nm', '-D', '--defined-only', $t->{module});
    my @names = grep { !/^(?:__|_init|_fini|_edata|_end)/ } map { (split)[2] } split /\n/, $out;

    is(join(' ', sort @names), 'ngx_module_names ngx_module_order ngx_modules', 'exports what nginx looks up, and nothing else');
}

done_testing();
