# The role webhooks: webhooks that an independent implementation verifies, postbacks, what becomes of each when endpoints refuse,
# lead elsewhere, hang, drop, or say too much; addresses that must never be called; a slow endpoint beside others; rotation of the
# secret; two daemons; kill -9 between the answer and the commit.

use Affiliated::Api;
use Affiliated::Daemon;
use Affiliated::Hooks;
use Affiliated::Smtp;
use Socket ();

my $t = Affiliated::Api->new;
my $top = $Affiliated::Test::TOP;

$t->redis_start;
my $hooks = Affiliated::Hooks->new($t);
my %conf = (interval => '50ms', timeout => '5s', connect_to => $hooks->address);
$t->api_start(roles => [qw(api clicks conversions holds projection partitions webhooks)], nginx => { affiliate => 1 },
    conf => { api => { rate => 0, rate_address => 0 }, webhooks => \%conf });
my $w = $t->world(rate => 1000, fee => 2000);
my ($maya, $asha) = ($t->person, $t->person);
$t->cli_json('affiliate', 'update', $w->{affiliate}, '--user', $asha->{user});
$t->psql("insert into affiliate.member (merchant_id, user_id, role) values ($w->{merchant}, $maya->{user}, 'manager')");
my $base = "/merchants/$w->{merchant}";

sub hook
{
    my ($path, %o) = @_;
    my $r = $maya->post("$base/webhooks", { url => "http://shop.example$path", types => ['order.pending'], livemode => JSON::PP::false, %o });
    is($r->{status}, 201, "a webhook: $path") or diag $r->{raw};
    return $r->{json};
}

sub ping { my $hook = shift; my $r = $maya->post("$base/webhooks/$hook->{webhook}/ping"); is($r->{status}, 202, 'a ping') or diag $r->{raw}; return $r->{json} }
sub delivery { return $maya->get("$base/webhook-deliveries/$_[0]{delivery}")->{json} }
sub tried { my ($d, $n) = @_; $t->wait_until('a try', sub { delivery($d)->{tries} >= ($n // 1) }); return delivery($d) }

# By the words of Standard Webhooks: base64 of HMAC-SHA256 over id.timestamp.body; by other code than ours.
sub verified
{
    my ($asked, $secret) = @_;
    my %all = (%{ $asked->{headers} }, secret => $secret, body => $asked->{body});
    my $in = JSON::PP->new->latin1->encode({ map { $_ => "$all{$_}" } keys %all });
    my ($code, $out, $err) = $t->run({ stdin => $in }, 'python3', '-c', <<'END');
import base64, hashlib, hmac, json, sys
a = json.loads(sys.stdin.buffer.read().decode('latin1'))
key = base64.b64decode(a['secret'][len('whsec_'):], validate=True)
signed = (a['webhook-id'] + '.' + a['webhook-timestamp'] + '.').encode() + a['body'].encode('latin1')
right = 'v1,' + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
print(sum(s == right for s in a['webhook-signature'].split(' ')), len(a['webhook-signature'].split(' ')))
END
    diag $err if $code;
    chomp $out;
    return $out;
}

# And by the library that its authors publish, where npm can be asked for it.
my $library = $t->path('library');
my ($no_library) = $t->run('npm', 'install', '--silent', '--no-save', '--prefix', $library, 'standardwebhooks@1.0.0');
sub library_says
{
    my ($asked, $secret) = @_;
    $t->write('verify.js', <<'END');
const { Webhook } = require(process.argv[2] + '/node_modules/standardwebhooks');
const a = JSON.parse(require('fs').readFileSync(0, 'latin1'));
try { new Webhook(a.secret).verify(Buffer.from(a.body, 'latin1').toString(), a); console.log('verified'); } catch (e) { console.log(e.name); }
END
    my %all = (%{ $asked->{headers} }, secret => $secret, body => $asked->{body});
    my ($code, $out, $err) = $t->run({ stdin => JSON::PP->new->latin1->encode({ map { $_ => "$all{$_}" } keys %all }) }, 'node', $t->path('verify.js'), $library);
    chomp $out;
    return $out || $err;
}

# --- what arrives -------------------------------------------------------------------------------------------------------

my $ok = hook('/ok?a=b');
like($ok->{secret}, qr{^whsec_[A-Za-z0-9+/]{43}=$}, 'with a secret');
is($maya->get("$base/webhooks/$ok->{webhook}")->{json}{secret}, undef, 'which is shown once');
my $d = tried(ping($ok));
is("$d->{state} $d->{status} $d->{attempts}[0]{answer}", 'delivered 200 thanks', 'delivered');
my ($asked) = $hooks->asked;
is("$asked->{method} $asked->{path} $asked->{host} $asked->{headers}{'content-type'}", 'POST /ok?a=b shop.example application/json', 'as it was asked for');
is($asked->{headers}{'webhook-id'}, $d->{event}, 'under its id');
is($asked->{body}, $d->{body}, 'the body is as its owner is shown it');
is_deeply([sort keys %{ JSON::PP::decode_json($asked->{body}) }], [qw(data timestamp type)], 'of three fields');
is(verified($asked, $ok->{secret}), '1 1', 'and verifies');
ok(abs($asked->{headers}{'webhook-timestamp'} - time) < 300, 'signed now');
is(verified({ %$asked, body => "$asked->{body} " }, $ok->{secret}), '0 1', 'another body does not');
SKIP: {
    skip 'npm or its registry is not there', 3 if $no_library;
    is(library_says($asked, $ok->{secret}), 'verified', 'the library says so, too');
    is(library_says({ %$asked, body => "$asked->{body} " }, $ok->{secret}), 'WebhookVerificationError', 'of another body not');
    is(library_says($asked, 'whsec_' . 'A' x 43 . '='), 'WebhookVerificationError', 'nor by another secret');
}

# --- an order of test mode, to merchant and affiliate ---------------------------------------------------------------------

my $r = $asha->post('/affiliate/postbacks', { url => 'http://t.asha.example/p?s={status}&sub={sub1}&c={commission}&i={event_id}&n={payout}', types => ['order.pending'], livemode => JSON::PP::false });
is($r->{status}, 201, 'a postback') or diag $r->{raw};
$hooks->forget;
my $id;
$t->wait_until('a click', sub { ($id) = ($t->get("/r/$w->{test_link}?sub1=" . 'a%20b%26c%3d%e0%a4%a8')->{headers}{location} || '') =~ /affiliate_click_id=(\w+)/; return $id });
$t->wait_until('a call', sub { $t->call($w->{test_key}, { click_id => $id, order_id => 'W-1', status => 'pending', amount => '1000.00', currency => 'NPR' }, idempotency_key => 'W-1')->{status} =~ /^20/ });
$t->wait_until('both are told', sub { $hooks->asked >= 2 });
my ($post) = grep { $_->{method} eq 'POST' } $hooks->asked;
my ($get) = grep { $_->{method} eq 'GET' } $hooks->asked;
my $event = JSON::PP::decode_json($post->{body});
is("$event->{type} $event->{data}{order} $event->{data}{amount} $event->{data}{commission}", 'order.pending W-1 1000.00 100.00', 'the merchant is told');
is($event->{data}{livemode}, JSON::PP::false, 'that it is a test');
is($get->{path}, "/p?s=pending&sub=a%20b%26c%3D%E0%A4%A8&c=100.00&i=$post->{headers}{'webhook-id'}&n=", 'the affiliate, percent-encoded');
is($get->{headers}{'webhook-signature'}, undef, 'without a signature');

# --- what goes wrong ----------------------------------------------------------------------------------------------------

for my $case (
    ['/status/500', qr/^the answer has the status 500$/, 500],
    ['/status/404', qr/^the answer has the status 404$/, 404],
    ['/leads', qr/^the answer leads elsewhere \(status 302\), which is not followed$/, 302],
    ['/close', qr/^no answer came: /, undef],
    ['/reset', qr/^no answer came: /, undef],
    ['/garbage', qr/^no answer came: /, undef],
    ['/interim', qr/^no answer came: /, 100],
    )
{
    my ($path, $error, $status) = @$case;
    my $got = tried(ping(hook($path)));
    is($got->{state}, 'waiting', "$path: it waits");
    like($got->{error}, $error, 'and says why');
    is($got->{status}, $status, 'with the status');
    $t->psql("update affiliate.endpoint set removed_at = now(), active = false where url like '%$path'");
}
is(scalar(grep { $_->{path} eq '/ok/led' } $hooks->asked), 0, 'nobody was led anywhere');
for my $path ('/huge', '/headers', '/binary', '/late', '/status/204') {
    is(tried(ping(hook($path)))->{state}, 'delivered', "$path: it said that it has it");
    $t->psql("update affiliate.endpoint set removed_at = now(), active = false where url like '%$path'");
}

my $gone = hook('/status/410');
is(tried(ping($gone))->{state}, 'failed', 'gone');
$r = $maya->get("$base/webhooks/$gone->{webhook}")->{json};
is("$r->{active} $r->{disabled_reason}", '0 gone', 'it is disabled');
my $busy = hook('/retry/429/7200');
tried($d = ping($busy));
is($t->value("select next_at between now() + '119 min' and now() + '121 min' from affiliate.delivery where delivery_id = $d->{delivery}"), 't', 'Retry-After is honoured');
my $twice = hook('/once/503/a');
tried($d = ping($twice));
my $first = ($hooks->asked)[-1];
$t->psql("update affiliate.delivery set next_at = now() where delivery_id = $d->{delivery}");
is(tried($d, 2)->{state}, 'delivered', 'what failed once arrives later');
is(($hooks->asked)[-1]{headers}{'webhook-id'}, $first->{headers}{'webhook-id'}, 'under the same id');
is(($hooks->asked)[-1]{body}, $first->{body}, 'with the same body');
is($maya->post("$base/webhook-deliveries/$d->{delivery}/resend")->{status}, 202, 'sent again by hand');
is(tried($d, 3)->{state}, 'delivered', 'it arrives');

# --- what can't be called -------------------------------------------------------------------------------------------------

# Both once ended the role's life: nobody else was told anything.
my $broken = hook('/ok/broken');
$t->psql("update affiliate.endpoint set secret = 'ff' where endpoint_id = $broken->{webhook}");
like(tried(ping($broken))->{error}, qr/^the secret can't be opened/, 'a secret that can\'t be opened');
$t->psql("update affiliate.endpoint set url = 'http://t.asha.example/?' || repeat('{sub1}', 300), types = '{order.pending}' where kind = 'postback'");
$t->psql("with made as (insert into affiliate.event (type, affiliate_id, livemode, subject, data)
    select 'order.pending', affiliate_id, false, 'long', jsonb_build_object('sub_ids', jsonb_build_array(repeat('&', 200))) from affiliate.endpoint where kind = 'postback' returning event_id)
    insert into affiliate.delivery (endpoint_id, event_id) select endpoint_id, event_id from made, affiliate.endpoint where kind = 'postback'; notify affiliate_webhook");
$t->wait_until('a try', sub { ($t->value("select coalesce(d.error, '') from affiliate.delivery d join affiliate.event v using (event_id) where v.subject = 'long'") // '') eq 'with its values the URL is too long' });
is(tried(ping($ok))->{state}, 'delivered', 'others are told as before');

# --- rotation -----------------------------------------------------------------------------------------------------------

my $new = $maya->post("$base/webhooks/$ok->{webhook}/rotate")->{json};
isnt($new->{secret}, $ok->{secret}, 'another secret');
tried(ping($ok));
$asked = ($hooks->asked)[-1];
is(verified($asked, $ok->{secret}), '1 2', 'the old one verifies');
is(verified($asked, $new->{secret}), '1 2', 'and the new one');
$t->psql("update affiliate.endpoint set previous_until = now() where endpoint_id = $ok->{webhook}");
tried(ping($ok));
is(verified(($hooks->asked)[-1], $new->{secret}), '1 1', 'after that the new one alone');
unlike($t->daemon_log, qr/whsec_|\Q@{[substr $new->{secret}, 6, 20]}\E/, 'no secret gets into the log');

# --- a slow one beside others -------------------------------------------------------------------------------------------

my $slow = hook('/slow');
ping($slow) for 1 .. 20;
$t->wait_until('the slow one has its share', sub { $t->value("select count(*) from affiliate.delivery where endpoint_id = $slow->{webhook} and taken") == 8 });
is(tried(ping($ok))->{state}, 'delivered', 'another is not kept from its own');
is($t->value("select max(tries) from affiliate.delivery where endpoint_id = $slow->{webhook}"), 0, 'meanwhile the slow one has not answered');
is(scalar(grep { $_->{path} eq '/slow' } $hooks->asked), 8, 'and was called eight times') ;
$t->wait_until('it is out of time', sub { $t->value("select count(*) from affiliate.delivery where endpoint_id = $slow->{webhook} and error like 'no answer came in time%'") > 0 });
is($maya->delete("$base/webhooks/$slow->{webhook}")->{status}, 204, 'removed');
cmp_ok(value($t, 'webhooks', 'webhooks_delivered_total'), '>=', 10, 'what arrived is counted');
cmp_ok(value($t, 'webhooks', 'webhooks_refused_total'), '>=', 8, 'and what did not');

# --- kill -9, two daemons -----------------------------------------------------------------------------------------------

my %certified = map { $_ => hook('', url => "https://$_/ok", livemode => JSON::PP::true) } qw(shop.sites.example shop.elsewhere.example);
$t->daemon_stop;
$hooks->forget;
sub many { my $n = shift; $t->psql("with made as (insert into affiliate.event (type, merchant_id, livemode, subject, data)
    select 'ping', $w->{merchant}, false, n::text, '{}' from generate_series(1, $n) n returning event_id)
    insert into affiliate.delivery (endpoint_id, event_id) select $ok->{webhook}, event_id from made") }
my $over = sub { $t->value("select count(*) from affiliate.delivery d join affiliate.event v using (event_id) where v.data = '{}' and d.state <> 'delivered'") == 0 };
many(200);
for (1 .. 3) {
    $t->daemon_start(roles => ['webhooks'], conf => { webhooks => { %conf, timeout => '1s' } });
    my $seen = $hooks->asked;
    $t->wait_until('some are sent', sub { $hooks->asked > $seen });
    $t->daemon_kill;
}
$t->daemon_start(roles => ['webhooks'], conf => { webhooks => { %conf, timeout => '1s' } });
ok($t->wait_until('all', $over), 'killed again and again, all arrive');
my %times;
$times{ $_->{headers}{'webhook-id'} }++ for $hooks->asked;
is(scalar keys %times, 200, 'each of them');
$t->daemon_stop;

# Without the API: a delivery that was tried.
sub delivered_to
{
    my $endpoint = shift;
    my $delivery = $t->value("with made as (insert into affiliate.event (type, merchant_id, livemode, subject, data)
            select 'ping', merchant_id, livemode, 'x', '{}' from affiliate.endpoint where endpoint_id = $endpoint returning event_id)
        insert into affiliate.delivery (endpoint_id, event_id) select $endpoint, event_id from made returning delivery_id; notify affiliate_webhook");

    $t->wait_until('a try', sub { ($t->value("select tries from affiliate.delivery where delivery_id = $delivery and not taken") || 0) > 0 });
    return $delivery;
}

# --- certificates ---------------------------------------------------------------------------------------------------------

SKIP: {
    skip 'IO::Socket::SSL is not installed: https is not tried', 6 unless Affiliated::Smtp::tls_there();
    for my $case ([undef, 'shop.sites.example', qr/^no answer came: .*certificate/i], [$hooks->ca, 'shop.elsewhere.example', qr/^no answer came: .*(?:certificate|name)/i],
        [$hooks->ca, 'shop.sites.example', undef])
    {
        my ($ca, $host, $error) = @$case;
        $hooks->forget;
        $t->daemon_start(roles => ['webhooks'], conf => { webhooks => { %conf, $ca ? (ca_file => $ca) : () } });
        my $delivery = delivered_to($certified{$host}{webhook});
        my ($state, $said) = @{ ($t->rows("select state, error from affiliate.delivery where delivery_id = $delivery"))[0] };
        $error ? like($said, $error, "$host: who it is is not shown") : is($state, 'delivered', "$host: who it is is shown");
        is(scalar($hooks->asked), $error ? 0 : 1, $error ? 'and nothing is told' : 'and it is told');
        $t->daemon_stop;
    }
}

# --- addresses that are not the internet's ------------------------------------------------------------------------------

$hooks->forget;
$t->daemon_start(roles => ['webhooks'], conf => { webhooks => { interval => '50ms', timeout => '5s' } });
my ($port) = $hooks->address =~ /:(\d+)/;
my $v6 = socket my $probe, Socket::PF_INET6(), Socket::SOCK_STREAM(), 0;
my %inner = map { $_ => 1 } (qw(127.0.0.1 127.1 2130706433 0x7f.0.0.1 0177.0.0.1 0.0.0.0 10.1.2.3 172.16.0.1 192.168.1.1 169.254.169.254 100.64.0.1 localhost),
    '[::1]', '[::]', '[::ffff:127.0.0.1]', '[::ffff:a9fe:a9fe]', '[fe80::1]', '[fd00::1]', '[64:ff9b::7f00:1]', '[2002:7f00:1::]');
for my $host (sort keys %inner) {
    my $endpoint = $t->value("insert into affiliate.endpoint (kind, merchant_id, livemode, url, types, secret)
        select 'webhook', $w->{merchant}, false, 'http://$host:$port/ok', '{order.pending}', secret from affiliate.endpoint where endpoint_id = $ok->{webhook} returning endpoint_id");
    my $delivery = delivered_to($endpoint);
    # Where there is no IPv6 at all, libcurl does not get as far.
    my $refused = $host =~ /^\[/ && !$v6 ? qr/^no answer came: |^the host is at / : qr/^the host is at \S+, which is no address on the internet$/;
    like($t->value("select error from affiliate.delivery where delivery_id = $delivery"), $refused, "never called: $host");
}
is(scalar($hooks->asked), 0, 'nobody was asked anything');

done_testing();
