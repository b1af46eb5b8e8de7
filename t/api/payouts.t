# Payouts over HTTP: an affiliate asks, one admin makes a batch, another approves it, its file goes out, the answer comes back; what
# is refused, cancelled, rejected, failed, unknown, recalled; tax; a refund after it was paid. The books hold after each.

use Affiliated::Api;

use Digest::SHA ();

my $t = Affiliated::Api->new;
my $r;

$t->redis_start;
$t->api_start(roles => [qw(api clicks conversions holds projection partitions)], nginx => { affiliate => 1 }, conf => { api => { rate => 0, rate_address => 0 } });
my $w = $t->world(rate => 1000, fee => 2000);
my ($asha, $maker, $checker) = ($t->person, $t->person(admin => 1), $t->person(admin => 1));
$t->cli_json('affiliate', 'update', $w->{affiliate}, '--user', $asha->{user});
my $stranger = $t->person;
is(problem($stranger->post('/affiliate', { display_name => 'Other', country => 'NP', channels => [{ kind => 'other', url => 'https://other.example' }], methods => ['content'] })), 201, 'another affiliate');
$maker->post('/admin/affiliates/' . $stranger->get('/affiliate')->{json}{affiliate} . '/approve', {});

my $orders = 0;

# An order whose commission is 10 % of an amount; once its hold is over.
sub earn
{
    my ($amount, %o) = @_;
    my $order = 'O-' . ++$orders;
    my $id;
    my $path = '/r/' . ($o{test} ? $w->{test_link} : $w->{link});

    $t->wait_until('a click', sub { ($id) = ($t->get($path)->{headers}{location} || '') =~ /affiliate_click_id=(\w+)/; return $id });
    $t->wait_until('a call', sub { $t->call($w->{ $o{test} ? 'test_key' : 'key' }, { click_id => $id, order_id => $order, status => 'approved', amount => $amount, currency => 'NPR' }, idempotency_key => $order)->{status} =~ /^20/ });
    $t->wait_until("$order payable", sub { $t->value("select count(*) from affiliate.release_item join affiliate.order_fact o using (merchant_id, order_no) where o.order_id = '$order'") });
    return ($order, $id);
}

sub wallet { my ($n) = grep { $_->{currency} eq 'NPR' } $asha->pages('/affiliate/wallet'); return join ' ', @$n{qw(payable in_payout paid)} }
sub books { my ($code, $out) = $t->cli('audit'); is($code, 0, "the books hold: $_[0]") or diag $out }
sub refused { my ($r, $problem, $name) = @_; return is(problem($r), $problem, "refused: $name") || diag $r->{raw} }

earn('10000.00');
is(wallet(), '1000.00 0.00 0.00', 'payable');

# --- the affiliate asks -------------------------------------------------------------------------------------------------

my $p = '/affiliate/payouts';
my %npr = (currency => 'NPR');
refused($asha->post($p, { amount => '600', %npr }), '422 invalid_field', 'without a payout method');
$asha->post('/affiliate/payout-methods', { kind => 'esewa', holder => 'Asha, "Rai"', account => '9841234567' });
refused($asha->post($p, { amount => '600', %npr }), '409 cool_off', 'to an account that is new');
$t->psql(q{update affiliate.payout_policy set cool_off = '0'});
refused($asha->post($p, { amount => '499.99', %npr }), '422 invalid_field', 'less than the minimum');
refused($asha->post($p, { amount => '1000.01', %npr }), '422 invalid_field', 'more than there is');
refused($asha->post($p, { amount => '600', currency => 'USD' }), '422 invalid_field', 'a currency that is not paid out');
refused($asha->post($p, { amount => '600.001', %npr }), '422 invalid_field', 'a fraction of a paisa');
refused($asha->post($p, { amount => '600', %npr, vat_invoice => 'V-1' }), '422 invalid_field', 'a VAT invoice without a VAT number');
refused($stranger->post($p, { amount => '600', %npr }), '422 invalid_field', 'somebody else has none of it');
$r = $asha->post($p, { amount => '600', %npr });
is("$r->{status} $r->{json}{state} $r->{json}{amount} $r->{json}{account}", '201 requested 600.00 ******4567', 'requested');
my $first = $r->{json}{payout};
is(wallet(), '400.00 600.00 0.00', 'and set aside');
refused($asha->post($p, { amount => '500', %npr }), '409 payout_open', 'one at a time');
refused($stranger->get("$p/$first"), '404 not_found', 'another\'s payout');
refused($stranger->post("$p/$first/cancel"), '404 not_found', 'to cancel it');
is($asha->post("$p/$first/cancel")->{json}{state}, 'cancelled', 'cancelled');
is(wallet(), '1000.00 0.00 0.00', 'and back');
is($asha->post("$p/$first/cancel")->{json}{state}, 'cancelled', 'which is so, again');
books('a payout was cancelled');

# --- two people ---------------------------------------------------------------------------------------------------------

my $batches = '/admin/payout-batches';
refused($maker->post($batches, { kind => 'esewa', %npr }), '409 nothing_requested', 'nothing to pay');
my $second = $asha->post($p, { amount => '600', %npr })->{json}{payout};
refused($asha->post($batches, { kind => 'esewa', %npr }), '403 forbidden', 'an affiliate makes no batches');
refused($maker->post($batches, { kind => 'bank', %npr }), '409 nothing_requested', 'another rail');
refused($maker->post($batches, { kind => 'esewa', %npr, payouts => [$first] }), '422 invalid_field', 'one that is cancelled');
$r = $maker->get("/admin/payouts/$second")->{json};
is("$r->{account} @{[map { $_->{signal} } @{$r->{signals}}]} $r->{draws}[0]{amount}", '9841234567 new_destination 600.00', 'who decides sees where to, and what speaks against it');
$r = $maker->post($batches, { kind => 'esewa', %npr });
is("$r->{status} $r->{json}{items} $r->{json}{amount} $r->{json}{tax} $r->{json}{net} $r->{json}{state}", '201 1 600.00 90.00 510.00 open', 'a batch, with 15 % of tax');
my $batch = "$batches/$r->{json}{batch}";
my $reference = $r->{json}{reference};
refused($asha->post("$p/$second/cancel"), '409 payout_state', 'it is too late to cancel');
refused($checker->post("$batch/approve"), '409 batch_state', 'what is not proposed');
is($maker->post("$batch/propose")->{json}{state}, 'proposed', 'proposed');
refused($maker->post("$batch/approve"), '403 second_person', 'who made it does not approve it');
refused($checker->post("$batch/export"), '409 batch_state', 'no file before it is approved');
is($checker->post("$batch/remove", { payout => $second })->{json}{state}, 'open', 'the second person takes one out');
is($asha->get("$p/$second")->{json}{state}, 'requested', 'which waits again');
is($checker->post("$batch/reject", { reason => 'Empty' })->{json}{state}, 'rejected', 'the batch is given up');
$batch = "$batches/" . $maker->post($batches, { kind => 'esewa', %npr, payouts => [$second] })->{json}{batch};
$maker->post("$batch/propose");
$maker->post("/admin/affiliates/$w->{affiliate}/suspend", { reason => 'Look' });
refused($checker->post("$batch/approve"), '409 batch_state', 'who is suspended is not paid');
$maker->post("/admin/affiliates/$w->{affiliate}/activate", {});
is($checker->post("$batch/approve")->{json}{state}, 'approved', 'approved by the second');
books('a batch was approved');

# --- the file, and the answer --------------------------------------------------------------------------------------------

refused($maker->get("$batch/file"), '409 batch_state', 'no file yet');
$r = $maker->post("$batch/export")->{json};
my $file = $maker->get("$batch/file")->{body};
is($file, qq(Reference,Mobile Number,Name,Amount,Remarks\r\nAP$second,9841234567,"Asha, ""Rai""",510.00,$r->{reference} AP$second\r\nTOTAL 1,,,510.00,\r\n), 'the file');
is(Digest::SHA::sha256_hex($file), $r->{sha256}, 'its checksum');
refused($maker->post("$batch/export"), '409 batch_state', 'it is made once');
refused($maker->post("$batch/reject", { reason => 'Late' }), '409 batch_state', 'it is on its way');
is($asha->get("$p/$second")->{json}{state}, 'processing', 'on its way');

sub answer { my ($text, $who) = @_; return ($who || $maker)->post("$batch/results", undef, raw => $text, type => 'text/csv') }
my $header = "Reference,Amount,Status,Transaction Id,Message\r\n";
refused(answer("Reference,Status\r\nAP$second,PAID\r\n"), '422 invalid_field', 'an answer without amounts');
refused(answer($header . "AP$second,600.00,PAID,T1,\r\n"), '409 result_amounts', 'another amount');
refused(answer($header . "AP$second,510.00,PAID,T1,\r\nAP$second,510.00,PAID,T2,\r\n"), '409 result_twice', 'twice');
refused(answer($header . "AP$second,510.00,PAID,T1,\r\nTOTAL 1,510.10,,,\r\n"), '409 result_amounts', 'a total that is wrong');
refused(answer($header . "AP$second,,PAID,T1,\r\n"), '409 result_amounts', 'no amount');
is($asha->get("$p/$second")->{json}{state}, 'processing', 'of which nothing was applied');
$r = answer($header . "AP$second,510.00,PENDING,,Ask again\r\nAP999,1.00,PAID,,\r\nTOTAL 2,511.00,,,\r\n")->{json};
is("$r->{paid} $r->{failed} $r->{unknown} $r->{problems}", '0 0 1 1', 'a word that we do not know, and a line of nobody');
is(($maker->pages("$batch/results/$r->{result}/rows?verdict=unmatched"))[0]{instruction}, 'AP999', 'which stays visible');
is($asha->get("$p/$second")->{json}{state}, 'unknown', 'nobody knows');
is(wallet(), '400.00 600.00 0.00', 'it stays set aside');
refused($maker->post($batches, { kind => 'esewa', %npr }), '409 nothing_requested', 'and is never sent again');
books('a payout is unknown');
$r = answer($header . "AP$second,510.00,Success,BNK-77,\r\n")->{json};
is("$r->{paid} $r->{problems}", '1 0', 'paid');
$r = answer($header . "AP$second,510.00,Success,BNK-77,\r\n")->{json};
is("$r->{paid} $r->{unchanged}", '0 1', 'sent again, it changes nothing');
$r = answer($header . "AP$second,510.00,Failed,,\r\n")->{json};
is("$r->{failed} $r->{problems}", '0 1', 'what contradicts it is for a person');
is(wallet(), '400.00 0.00 510.00', 'the wallet');
is(join(' ', map { $_->{state} } @{ $asha->get("$p/$second")->{json}{timeline} }), 'requested in_review requested in_review approved processing unknown paid', 'its timeline');
is($maker->get($batch)->{json}{state}, 'settled', 'the batch is settled');
my $month = $t->value(q{select to_char(now() at time zone 'UTC', 'YYYY-MM')});
is(join(' ', map { "$_->{amount} $_->{tax} $_->{net}" } $maker->pages("/admin/tax-register?month=$month")), '600.00 90.00 510.00', 'what was withheld');
like($maker->get("/admin/tax-register?month=$month&format=csv")->{body}, qr/^.*\r\n.*,600\.00,15\.00,90\.00,510\.00,NPR,paid\r\n\z/, 'as a file');
is(join(' ', map { "$_->{code} $_->{account} $_->{amount} $_->{payout}" } sort { $a->{code} cmp $b->{code} || $a->{amount} cmp $b->{amount} } grep { ($_->{payout} || 0) == $second } $asha->pages("/affiliate/statements/$month/lines")),
    "payout_freeze payable -600.00 $second payout_freeze in_payout 600.00 $second payout_paid in_payout -510.00 $second payout_paid paid 510.00 $second payout_tax in_payout -90.00 $second", 'her statement names it');
is($t->value("select string_agg(template || ' ' || coalesce(data ->> 'net', '-'), ', ' order by notice_id) from affiliate.notice where template like 'payout\\_%' and template <> 'payout_method_changed'"),
    'payout_requested -, payout_requested -, payout_paid 510.00', 'and she was told');
books('a payout was paid');

# --- failed, recalled, and below zero ----------------------------------------------------------------------------------------

my ($order, $click) = earn('20000.00');
is(problem($asha->put('/affiliate/tax-profile', { pan => '123', vat_registered => JSON::PP::true })), '422 invalid_field', 'a PAN has nine digits');
is($asha->put('/affiliate/tax-profile', { pan => '123456789', vat_registered => JSON::PP::true })->{json}{vat_registered}, JSON::PP::true, 'registered for VAT');

sub pay
{
    my ($amount, %o) = @_;
    my $made = $asha->post($p, { amount => $amount, %npr, %o })->{json}{payout};
    my $b = $maker->post($batches, { kind => 'esewa', %npr })->{json};

    $batch = "$batches/$b->{batch}";
    $maker->post("$batch/propose");
    $checker->post("$batch/approve");
    $maker->post("$batch/export");
    return ($made, $b);
}
my ($third, $b) = pay('2000.00', vat_invoice => 'V-2026-1');
is("$b->{tax} $b->{net}", '30.00 1970.00', 'with a VAT invoice 1.5 %');
refused($checker->post("/admin/payouts/$third/resolve", { outcome => 'failed' }), '422 invalid_field', 'a decision without a reason');
is($checker->post("/admin/payouts/$third/resolve", { outcome => 'failed', reason => 'The wallet is closed.' })->{json}{state}, 'failed', 'it failed');
like($asha->get("$p/$third")->{json}{sentence}, qr/payable again: The wallet is closed\./, 'which she is told');
is(wallet(), '2400.00 0.00 510.00', 'and is payable again');
($third) = pay('2400.00');
answer($header . "AP$third,2040.00,PAID,BNK-78,\r\n");
is(wallet(), '0.00 0.00 2550.00', 'all is paid');
is($checker->post("/admin/payouts/$second/recall", { reason => 'The bank sent it back.' })->{json}{state}, 'recalled', 'one comes back');
is(wallet(), '600.00 0.00 2040.00', 'net and tax are payable again');
books('a payout was recalled');
is($t->call($w->{key}, { click_id => $click, order_id => $order, status => 'refunded' })->{status}, 202, 'an order that was paid for is refunded');
$t->wait_until('below zero', sub { wallet() eq '-1400.00 0.00 2040.00' });
is(wallet(), '-1400.00 0.00 2040.00', 'below zero');
refused($asha->post($p, { amount => '500', %npr }), '422 invalid_field', 'then nothing is paid');
books('below zero');

# --- by hand -----------------------------------------------------------------------------------------------------------------------

earn('30000.00');
{
    my $made = $asha->post($p, { amount => '1000.00', %npr })->{json}{payout};
    my $path = "$batches/" . $maker->post($batches, { kind => 'esewa', %npr, provider => 'manual' })->{json}{batch};
    refused($maker->post($batches, { kind => 'esewa', %npr, provider => 'carrier pigeon' }), '422 invalid_field', 'another provider');
    $maker->post("$path/propose");
    $checker->post("$path/approve");
    is($maker->post("$path/export")->{json}{sha256}, undef, 'a batch that is paid by hand');
    refused($maker->get("$path/file"), '409 batch_state', 'has no file');
    $r = $maker->post("/admin/payouts/$made/resolve", { outcome => 'paid', reason => 'Paid in the app', rail_reference => 'E-55' });
    is("$r->{json}{state} $r->{json}{rail_reference}", 'paid E-55', 'each payout is told');
    is($maker->get($path)->{json}{state}, 'settled', 'until all are');
    books('paid by hand');
}

# --- rejected, test mode, maps ---------------------------------------------------------------------------------------------------

earn('20000.00');
my $fourth = $asha->post($p, { amount => '500', %npr })->{json}{payout};
is($maker->post("/admin/payouts/$fourth/reject", { reason => 'Prove your name first.' })->{json}{state}, 'rejected', 'rejected');
is(wallet(), '2600.00 0.00 2890.00', 'and back');
earn('7000.00', test => 1);
$r = $asha->post("$p?livemode=false", { amount => '700', %npr });
is("$r->{status} $r->{json}{livemode}", '201 0', 'in test mode') or diag $r->{raw};
refused($maker->post($batches, { kind => 'esewa', %npr }), '409 nothing_requested', 'which no live batch has');
{
    my $test = '?livemode=false';
    my $b = $maker->post("$batches$test", { kind => 'esewa', %npr })->{json};
    my $path = "$batches/$b->{batch}";
    like($b->{reference}, qr/^T/, 'a test batch says so');
    refused($maker->get($path), '404 not_found', 'in live mode it is not there');
    $maker->post("$path/propose$test");
    is($checker->post("$path/approve$test")->{json}{state}, 'approved', 'it takes two people, too');
    $maker->post("$path/export$test");
    like($maker->get("$path/file$test")->{body}, qr/^TP$r->{json}{payout},/m, 'its lines say so');
    is($maker->post("$path/results$test", undef, raw => $header . "TP$r->{json}{payout},595.00,PAID,,\r\n", type => 'text/csv')->{json}{paid}, 1, 'and so does its answer');
    is(join(' ', map { "$_->{payable} $_->{paid}" } $asha->pages("/affiliate/wallet$test")), '0.00 595.00', 'paid, in test mode');
    is($t->value(q{select count(*) from affiliate.notice where (data ->> 'payout')::bigint = } . $r->{json}{payout}), 0, 'without letters');
}
refused($maker->patch('/admin/rail-maps/esewa', { columns => [['Ref', 'instruction'], ['Who', 'password']] }), '422 invalid_field', 'a map of what is not there');
refused($maker->patch('/admin/rail-maps/esewa', { columns => [['Ref', 'instruction']] }), '422 invalid_field', 'a map without the amount');
is(problem($maker->patch('/admin/rail-maps/esewa', { columns => [['Ref', 'instruction'], ['NPR', 'net'], ['Type', '=COMMISSION']], totals => JSON::PP::false })), 200, 'a map as the wallet wants it');
$asha->post($p, { amount => '600', %npr });
$b = $maker->post($batches, { kind => 'esewa', %npr })->{json};
$batch = "$batches/$b->{batch}";
$maker->post("$batch/propose");
$checker->post("$batch/approve");
$maker->post("$batch/export");
like($maker->get("$batch/file")->{body}, qr/^Ref,NPR,Type\r\nAP\d+,510\.00,COMMISSION\r\n\z/, 'and a file like that');
is(scalar($maker->pages('/admin/payouts?state=paid')), 2, 'payouts by state');
is(scalar($asha->pages($p)), 7, 'hers');
cmp_ok(scalar($maker->pages("$batches?state=settled")), '>=', 2, 'batches by state');
books('at the end');

done_testing();
