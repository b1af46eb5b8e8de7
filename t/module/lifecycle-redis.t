# Redis as it should not be: away, hung, full, loading, talking nonsense. Known links go on, conversions are taken, what is
# not known is never said not to exist, and all is well again once Redis is.

use Affiliated::Test;

use JSON::PP ();

my $t = Affiliated::Test->new;
my $orders = 0;

$t->redis_start;
my $stub = $t->stub(listen => 'tcp');
$t->nginx_start(redis => $stub->address, http => <<'END');
    affiliate_address_rate off;
    affiliate_cache_valid 50ms;
    affiliate_cache_negative 50ms;
    affiliate_redis_timeout 300ms;
    affiliate_redis_reconnect 20ms 100ms;
    log_format vars '$request_uri $affiliate_cache_status';
    access_log %%DIR%%/vars.log vars;
END

my $key = $t->api_key;

sub status { return JSON::PP::decode_json($t->get('/status')->{body}) }
sub target { my $r = shift; return $r->{status} == 302 ? ($r->{headers}{location} =~ m{/([\w-]+)\?})[0] : $r->{status} }

my $last;

sub conversion
{
    my $r = $t->call($key, { click_id => $t->click_id, order_id => 'R-' . ++$orders, status => 'approved', amount => '1',
        currency => 'NPR' });

    $last = $r->{raw};
    return $r->{status};
}

# Until lookups and shipping work again.
sub heals
{
    my $name = shift;
    my $code = "healed-$name";

    $t->link(code => $code, url => "http://127.0.0.1/$code");
    ok($t->wait_until("$name heals", sub { target($t->get("/r/$code")) eq $code }), "$name: heals");
    ok($t->wait_until("$name ships", sub {
        my $s = status();
        return $s->{spool_unsent_records}{clicks} == 0 && $s->{spool_unsent_records}{conversions} == 0;
    }), "$name: what was kept meanwhile is shipped");
}

$t->link(code => $_, url => "http://127.0.0.1/$_") for qw(known other);
ok($t->wait_until('the first redirect', sub { target($t->get('/r/known')) eq 'known' }), 'a link');
is(target($t->get('/r/other')), 'other', 'another');
is(target($t->get('/r/nothing')), 404, 'one that is none');
is(conversion(), 202, 'a conversion');

# --- replies ---------------------------------------------------------------------------------------------------------

for my $mode (qw(loading oom garbage rst big array arrays extra hang refuse)) {
    my %seen;

    $stub->mode($mode);
    sleep 0.15;
    for my $n (1 .. 3) {
        $seen{ join ' ', map { target($t->get("/r/$_")) } qw(known other) }++;
        $seen{fresh}{ target($t->get("/r/$mode-$n")) }++;
    }
    is(join(' / ', grep { $_ ne 'fresh' } sort keys %seen), 'known other', "$mode: known links lead where they always did");
    my @fresh = sort keys %{ $seen{fresh} };
    # An extra reply is noticed when it comes; the answer before it was a good one.
    like("@fresh", $mode eq 'extra' ? qr/^(?:404 )?503$|^404$/ : qr/^503$/, "$mode: nobody knows what is not known")
        or diag "@fresh";
    is(conversion(), 202, "$mode: a conversion is taken") or diag $last;
    ok($t->wait_log(qr/too large a reply/, 10), "$mode: what it claims to be is not believed") if $mode =~ /^arrays?$/;
    $stub->mode('pass');
    heals($mode);
}

# --- replies in pieces -----------------------------------------------------------------------------------------------

$stub->mode('split');
$t->link(code => "split-$_", url => "http://127.0.0.1/split-$_" . 'x' x 500) for 1 .. 3;
for my $n (1 .. 3) {
    like(target($t->get("/r/split-$n")), qr/^(?:split-${n}x+|503)$/, "split: number $n");
}
$stub->mode('pass');
heals('split');

# --- extra replies must not shift answers ----------------------------------------------------------------------------

{
    my %wrong;

    $t->link(code => "s$_", url => "http://127.0.0.1/s$_") for 1 .. 30;
    $stub->mode('extra');
    for my $n (1 .. 30) {
        my $to = target($t->get("/r/s$n"));
        $wrong{"s$n to $to"}++ if $to !~ /^(?:s$n|503)$/;
    }
    is(join(', ', sort keys %wrong), '', 'extra: no answer is for another question');
    $stub->mode('pass');
    heals('extra-shift');
}

# --- one word a state, not one a request ------------------------------------------------------------------------------

{
    my $before = () = $t->error_log =~ /\[error\].*affiliate/g;
    $t->redis_kill;
    sleep 0.3;
    my @to = map { target($t->get("/r/$_")) } ('known', 'unheard') x 20;
    is(join(' ', sort { $a cmp $b } keys %{ { map { $_ => 1 } @to } }), '503 known', 'Redis gone: as before');
    ok($t->wait_until('STALE', sub { $t->slurp($t->path('vars.log')) =~ m{^/r/known STALE$}m }), 'Redis gone: known links are STALE');
    is(conversion(), 202, 'Redis gone: a conversion is on disk');
    my $after = () = $t->error_log =~ /\[error\].*affiliate/g;
    cmp_ok($after - $before, '<=', 8, 'Redis gone: a few lines in the log') or diag $t->error_log;
    $t->redis_restart(wipe => 1);
    is(target($t->get('/r/known')), 'known', 'Redis empty: known links are kept');
    sleep 0.3;
    is(target($t->get('/r/unheard')), 503, 'Redis empty: not known is not "does not exist"');
    heals('gone');
}

done_testing();
