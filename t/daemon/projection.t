# Links and keys on their way from PostgreSQL to Redis: every change, in its order, under every fault.

use Affiliated::Test;
use Affiliated::Daemon;

my $t = Affiliated::Test->new;
my $subscriber;

$t->redis_start;
$t->pg_start;
$t->daemon_start(roles => ['projection'], conf => { projection => { batch => 20 } });
my $w = $t->world;

# A record as protocol/projection.h lays it out, as far as this test looks: version at byte 8.
sub record { my $key = shift; my $raw = $t->redis('GET', $key); return defined $raw ? $raw : '' }
sub version { my $raw = record(@_); return length $raw ? unpack('Q<', substr $raw, 8, 8) : 0 }
sub changes { my ($key, $what, $code) = @_; my $before = record($key); $code->(); return changed($key, $before, $what) }
sub changed { my ($key, $before, $what) = @_; return ok($t->wait_until($what, sub { record($key) ne $before }), $what) }
sub epoch { return $t->redis('GET', 'aff:epoch') }
sub settled { return $t->wait_until('no change is left', sub { $t->value('select count(*) from affiliate.projection_change') == 0 }) }

# What the module would make of it, with the module itself.
sub follows { return $t->get("/r/$w->{link}")->{status} }

$t->nginx_start(http => 'affiliate_cache_valid 1s; affiliate_address_rate off;');
ok($t->wait_until('the link', sub { follows() == 302 }), 'a link that was created redirects');
ok(epoch(), 'the projection says that it is complete');

# --- changes --------------------------------------------------------------------------------------------------------------------

my $link = "aff:link:$w->{link}";
my $version = version($link);
changes($link, 'pausing a link is projected', sub { $t->cli_json('link', 'pause', $w->{link}) });
ok($t->wait_until('410', sub { follows() == 410 }), 'and it redirects no more');
cmp_ok(version($link), '>', $version, 'its version is a higher one');
changes($link, 'so is resuming it', sub { $t->cli_json('link', 'resume', $w->{link}) });
ok($t->wait_until('302', sub { follows() == 302 }), 'and it redirects again');
changes($link, 'another URL, too', sub { $t->cli_json('link', 'update', $w->{link}, '--url', 'http://localhost/elsewhere') });
ok($t->wait_until('the new URL', sub { $t->get("/r/$w->{link}")->{headers}{location} =~ m{^http://localhost/elsewhere} }), 'is where it leads');
changes($link, 'suspending its campaign', sub { $t->cli_json('campaign', 'suspend', $w->{campaign}) });
changes($link, 'and activating it', sub { $t->cli_json('campaign', 'activate', $w->{campaign}) });
changes($link, 'suspending its merchant', sub { $t->cli_json('merchant', 'suspend', $w->{merchant}) });
changes($link, 'and activating it again', sub { $t->cli_json('merchant', 'activate', $w->{merchant}) });
changes("aff:key:$w->{key}{id}", 'revoking a key', sub { $t->cli_json('key', 'revoke', $w->{key}{id}) });
settled();

# --- versions never go back -----------------------------------------------------------------------------------------------------------

my $record = record($link);
my $future = $record;
substr($future, 8, 8) = pack 'Q<', version($link) + 1000;
$t->redis('SET', $link, $future);
$t->cli_json('link', 'update', $w->{link}, '--url', 'http://localhost/older');
settled();
is(record($link), $future, 'a record of a higher version is not replaced');
$t->redis('SET', $link, $record);
$t->cli_json('link', 'update', $w->{link}, '--url', 'http://localhost/newer');
settled();
cmp_ok(version($link), '>', unpack('Q<', substr $record, 8, 8), 'one of a lower version is');

# --- Redis forgets the script, then everything --------------------------------------------------------------------------------------------

$t->redis('SCRIPT', 'FLUSH');
changes($link, 'a change after Redis forgot the script', sub { $t->cli_json('link', 'update', $w->{link}, '--url', 'http://localhost/x') });
$t->psql("insert into affiliate.link (merchant_id, campaign_id, affiliate_id, code, url, livemode)
    select merchant_id, campaign_id, affiliate_id, 'bulk' || n, url, livemode
      from affiliate.link, generate_series(1, 400) n where code = '$w->{link}'");
settled();
my $epoch = epoch();
$t->redis('FLUSHALL');
ok($t->wait_until('the rebuild', sub { my $now = epoch(); $now && $now ne $epoch }), 'emptied, Redis gets everything again');
is(scalar @{ $t->redis('KEYS', 'aff:link:*') }, 402, 'every link');
is(scalar @{ $t->redis('KEYS', 'aff:key:*') }, 2, 'and every key');

# In the middle of a rebuild: the epoch must not call an emptied Redis complete. A module would answer 404 for good links.
my ($early, $rebuilds) = (0, 0);
for my $try (1 .. 4) {
    $t->redis('DEL', 'aff:epoch');
    $t->wait_until('a rebuild under way', sub { $t->redis('EXISTS', 'aff:rebuild') || epoch() });
    $rebuilds++ if $t->redis('EXISTS', 'aff:rebuild') && !epoch();
    sleep rand 0.01;
    $t->redis('FLUSHALL');
    $t->wait_until('complete again', sub {
        my ($now, $links) = @{ $t->redis('EVAL', "return {redis.call('GET', 'aff:epoch'), #redis.call('KEYS', 'aff:link:*')}", 0) };
        $early++ if $now && $links < 402;
        return $now;
    });
}
note("$rebuilds rebuilds were seen under way");
cmp_ok($rebuilds, '>', 0, 'Redis was emptied while everything was being written');
is($early, 0, 'and never called complete before it was');

# --- strangers, and another PostgreSQL ---------------------------------------------------------------------------------------------------

$t->psql("delete from affiliate.link where code = 'bulk7'");
settled();
ok(!$t->redis('EXISTS', 'aff:link:bulk7'), 'a link that is deleted is deleted in Redis');

# --- another master key ---------------------------------------------------------------------------------------------------------------------

$record = record('aff:link:bulk8');
$epoch = epoch();
my $keys = $t->slurp($t->{keys});
$t->write($t->{keys}, 'next ' . 'cd' x 32 . "\n$keys");
$t->daemon_signal('HUP');
ok($t->wait_until('everything signed anew', sub { (epoch() || $epoch) ne $epoch }), 'with a new master key everything is written again');
isnt(record('aff:link:bulk8'), $record, 'under that key');
is(version('aff:link:bulk8'), unpack('Q<', substr $record, 8, 8), 'in the same version');
$t->nginx_reload;
ok($t->wait_until('302', sub { follows() == 302 }), 'which nginx takes when it has it, too');
done_testing();
