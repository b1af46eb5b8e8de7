# The whole way, by plain HTTP: link, click, order, hold, payable, refund. Everything real, nothing forged.

use Affiliated::Test;

my $t = Affiliated::Test->new;
my ($w, $r, $id);

sub order
{
    my ($order, $livemode) = @_;
    my ($code, $out) = $t->cli('order', 'show', '--merchant', $w->{merchant}, '--order', $order,
        '--livemode', $livemode || 'true', '--json');

    return $code ? { state => '' } : JSON::PP::decode_json($out);
}

sub reaches
{
    my ($order, $state, $livemode) = @_;

    return $t->wait_until("order $order is $state", sub { order($order, $livemode)->{state} eq $state });
}

sub balance
{
    my ($owner, $kind, $livemode) = @_;
    my @rows = grep { $_->{kind} eq $kind }
        $t->cli_json('balance', '--merchant', $w->{merchant}, '--owner', $owner, '--livemode', $livemode || 'true');

    return @rows ? $rows[0]{balance} : '0.00';
}

$t->redis_start;
$t->pg_start(conf => 'fsync = on');
$t->daemon_start;
$w = $t->world(rate => 1000, fee => 2000, hold => '2 seconds', url => 'http://127.0.0.1/shop?color=red#reviews');
$t->nginx_start;

# --- the click ---------------------------------------------------------------------------------------------------------

$t->wait_until('the link is known', sub { $t->get("/r/$w->{link}")->{status} == 302 });
$r = $t->get("/r/$w->{link}?sub1=video-7&utm_source=tiktok");
is($r->{status}, 302, 'the link redirects');
like($r->{headers}{location}, qr{^http://127\.0\.0\.1/shop\?color=red&.*affiliate_click_id=[0-9a-z]{39}.*#reviews$},
    'to the shop, with a click_id before the fragment');
($id) = $r->{headers}{location} =~ /affiliate_click_id=([0-9a-z]+)/;
my $uuid = $t->uuid_of($id);
$t->wait_until('the click is in PostgreSQL', sub { $t->value("select count(*) from affiliate.click where id = '$uuid'") == 1 });
is($t->value("select sub_ids[1] from affiliate.click where id = '$uuid'"), 'video-7', 'with its sub-id');
is($t->value("select address_prefix from affiliate.click where id = '$uuid'"), '127.0.0.0/24', 'and a truncated address');

# --- the order ---------------------------------------------------------------------------------------------------------

my %event = (click_id => $id, order_id => 'NP-1001', amount => '1250.50', currency => 'NPR');

$r = $t->call($w->{key}, { %event, status => 'pending' }, idempotency_key => 'NP-1001-pending');
is($r->{status}, 202, 'pending is accepted') or diag $r->{raw};
reaches('NP-1001', 'pending');
is(balance('affiliate', 'pending'), '125.05', 'a tenth of 1250.50 is pending');
is(balance('merchant', 'accrued'), '150.06', 'the merchant accrues commission and fee');
is(balance('affiliate', 'payable'), '0.00', 'nothing is payable');

$r = $t->call($w->{key}, { %event, status => 'approved' }, idempotency_key => 'NP-1001-approved');
is($r->{status}, 202, 'approved is accepted');
$r = $t->call($w->{key}, { %event, status => 'approved' }, idempotency_key => 'NP-1001-approved');
is($r->{status}, 200, 'the same call again is replayed');
is($r->{headers}{'idempotent-replayed'}, 'true', 'and says so');
reaches('NP-1001', 'payable');
is(balance('affiliate', 'payable'), '125.05', 'after the hold it is payable');
is(balance('affiliate', 'pending'), '0.00', 'and not pending any more');

# --- money back ----------------------------------------------------------------------------------------------------------

$r = $t->call($w->{key}, { %event, status => 'refunded', amount => '250.50', refund_id => 'R-1' }, idempotency_key => 'R-1');
is($r->{status}, 202, 'a partial refund is accepted');
$t->wait_until('the refund is posted', sub { balance('affiliate', 'payable') eq '100.00' });
is(balance('affiliate', 'payable'), '100.00', 'the commission of what was kept');

# --- by postback ---------------------------------------------------------------------------------------------------------

($id) = $t->get("/r/$w->{link}")->{headers}{location} =~ /affiliate_click_id=([0-9a-z]+)/;
$r = $t->postback($w->{key}, { click_id => $id, order_id => 'NP-1002', status => 'approved', amount => '10.00', currency => 'NPR' });
is($r->{status}, 202, 'a postback is accepted') or diag $r->{raw};
reaches('NP-1002', 'payable');

# --- test mode never meets live ---------------------------------------------------------------------------------------------

$t->wait_until('the test link is known', sub { $t->get("/r/$w->{test_link}")->{status} == 302 });
my ($test_id) = $t->get("/r/$w->{test_link}")->{headers}{location} =~ /affiliate_click_id=([0-9a-z]+)/;
$r = $t->call($w->{key}, { %event, click_id => $test_id, order_id => 'NP-1003', status => 'approved' });
is($r->{status}, 422, 'a live key refuses the click_id of a test link');
$r = $t->call($w->{test_key}, { %event, click_id => $test_id, order_id => 'NP-1001', status => 'approved' });
is($r->{status}, 202, 'a test key takes it, under an order_id that live also has');
reaches('NP-1001', 'payable', 'false');
is(balance('affiliate', 'payable', 'false'), '125.05', 'and it has books of its own');
is(balance('affiliate', 'payable'), '101.00', 'that the live ones know nothing of');

# --- a link that is paused --------------------------------------------------------------------------------------------------

$t->cli_json('link', 'pause', '--link', $w->{link});
ok($t->wait_until('the link is paused', sub { $t->get("/r/$w->{link}")->{status} == 410 }), 'a paused link is gone at once');

# --- the end ------------------------------------------------------------------------------------------------------------------

is(order('NP-1001')->{outcome}, 'accepted', 'the order says that it is accepted');
my ($code, $out, $err) = $t->cli('audit');
is($code, 0, 'the books hold') or diag "$out$err";
($code, $out, $err) = $t->cli('check');
is($code, 0, 'affiliated check finds nothing') or diag "$out$err";
($code, $out, $err) = $t->cli('dead-letters', 'list', '--json');
is($out, '', 'no dead letters');

done_testing();
