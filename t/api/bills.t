# Merchants' bills over HTTP: made of test orders at once, of live ones after the month; lines, a page to print, payments and what they
# count for, corrections, VAT, who sees what. The books hold after each.

use Affiliated::Api;
use POSIX ();

my $t = Affiliated::Api->new;
my $r;

$t->redis_start;
$t->api_start(roles => [qw(api clicks conversions holds projection partitions)], nginx => { affiliate => 1 },
    conf => { api => { rate => 0, rate_address => 0 }, partitions => { interval => '1s' } });
my $w = $t->world(rate => 1000, fee => 2000);
my ($owner, $reader, $admin, $stranger) = ($t->person, $t->person, $t->person(admin => 1), $t->person);
$t->cli_json('member', 'create', $w->{merchant}, '--user', $owner->{user}, '--role', 'owner');
$t->cli_json('member', 'create', $w->{merchant}, '--user', $reader->{user}, '--role', 'read_only');
my $m = "/merchants/$w->{merchant}";
my $test = '?livemode=false';
my %npr = (currency => 'NPR');
my ($orders, %click) = (0);

sub refused { my ($r, $problem, $name) = @_; return is(problem($r), $problem, "refused: $name") || diag $r->{raw} }
sub books { my ($code, $out) = $t->cli('audit'); is($code, 0, "the books hold: $_[0]") or diag $out }

# An order that stuck: 10 % of its amount is the affiliate's, and 20 % of that the network's on top.
sub keep
{
    my ($amount, %o) = @_;
    my $order = $o{name} || 'O-' . ++$orders;
    my $path = '/r/' . ($o{test} ? $w->{test_link} : $w->{link});

    $t->wait_until('a click', sub { ($click{$order}) = ($t->get($path)->{headers}{location} || '') =~ /affiliate_click_id=(\w+)/; return $click{$order} });
    $t->wait_until('a call', sub { $t->call($w->{ $o{test} ? 'test_key' : 'key' }, { click_id => $click{$order}, order_id => $order, status => 'approved', amount => $amount, %npr }, idempotency_key => $order)->{status} =~ /^20/ });
    $t->wait_until("$order kept", sub { $t->value("select count(*) from affiliate.release_item join affiliate.order_fact o using (merchant_id, order_no) where o.order_id = '$order'") });
    return $order;
}

sub refund
{
    my ($order, %o) = @_;
    $t->call($w->{ $o{test} ? 'test_key' : 'key' }, { click_id => $click{$order}, order_id => $order, status => 'refunded', $o{amount} ? (amount => $o{amount}, %npr, refund_id => 'r') : () }, idempotency_key => "$order-r");
    $t->wait_until("$order refunded", sub { $t->value("select count(*) from affiliate.transfer t join affiliate.order_fact o on o.merchant_id = t.merchant_id and o.order_no = t.cause_id where t.cause_kind = 1 and t.code = 3 and o.order_id = '$order'") });
}

# --- test mode -----------------------------------------------------------------------------------------------------------------------

refused($owner->post("$m/bills$test", \%npr), '409 nothing_owed', 'nothing is owed');
keep('1000.00', test => 1, name => 'T<1>&"');
keep('500.55', test => 1, name => 'T-2');
refused($owner->post("$m/bills", \%npr), '403 test_mode_only', 'live bills make themselves');
refused($reader->post("$m/bills$test", \%npr), '403 forbidden', 'who only reads makes none');
refused($owner->post("$m/bills$test", { currency => 'XXQ' }), '422 invalid_field', 'a currency that is none');
$r = $owner->post("$m/bills$test", \%npr);
is("$r->{status} @{$r->{json}}{qw(lines commission fee vat total paid state)}", '201 2 150.06 30.01 0.00 180.07 0.00 issued', 'a bill') or diag $r->{raw};
like($r->{json}{number}, qr/^TEST-\d{4}-000001$/, 'its number');
my $bill = "$m/bills/$r->{json}{bill}";
refused($owner->post("$m/bills$test", \%npr), '409 nothing_owed', 'everything is on one');
is(join(', ', map { "$_->{line} $_->{kind} $_->{order} $_->{amount} $_->{commission} $_->{fee}" } $owner->pages("$bill/lines$test")),
    '1 kept T<1>&" 1000.00 100.00 20.00, 2 kept T-2 500.55 50.06 10.01', 'its orders');
like($owner->get("$bill/lines$test&format=csv")->{body}, qr/^line,kind,order,.*\r\n1,kept,"T<1>&""",/, 'as a file');
refused($owner->get($bill), '404 not_found', 'in live mode it is not there');
refused($stranger->get("$bill$test"), '404 not_found', 'for strangers neither');
is(problem($reader->get("$bill$test")), 200, 'who reads sees it');
$r = $owner->get("$bill/print$test");
is("$r->{status} $r->{headers}{'content-type'}", '200 text/html; charset=utf-8', 'a page to print');
like($r->{headers}{'content-security-policy'}, qr/default-src 'none'/, 'that may fetch nothing');
like($r->{body}, qr{<td>T&lt;1&gt;&amp;&quot;</td>.*180\.07 NPR|180\.07 NPR.*<td>T&lt;1&gt;&amp;&quot;</td>}s, 'with what others wrote as text');
unlike($r->{body}, qr/T<1>/, 'and only so');
like($r->{body}, qr/Invoice \(test\) TEST-/, 'which says what it is');
books('a bill was made');

# What comes back later is on the next one; below zero it is a credit note.
refund('T-2', test => 1);
$r = $owner->post("$m/bills$test", \%npr)->{json};
is("@{$r}{qw(lines total state)}", '1 -60.07 credit', 'a credit note') or diag explain $r;
is(join(' ', map { "$_->{kind} $_->{order} $_->{commission} $_->{fee}" } $owner->pages("$m/bills/$r->{bill}/lines$test")), 'correction T-2 -50.06 -10.01', 'for what came back');
like($owner->get("$m/bills/$r->{bill}/print$test")->{body}, qr/Credit note/, 'on paper, too');
is($owner->get("$bill$test")->{json}{paid}, '60.07', 'it counts for the first bill');
is($owner->get("$bill$test")->{json}{state}, 'part_paid', 'a part of it');
books('a credit note was made');

# Whoever asked is told when one is made, and when one is paid.
$t->psql("insert into affiliate.endpoint (kind, merchant_id, livemode, url, types, secret) values ('webhook', $w->{merchant}, false, 'http://hooks.example/', '{bill.issued,bill.paid}', 'x')");
sub told { return $t->value("select coalesce(string_agg(type || ' ' || right(subject, 1), ', ' order by event_id), '') from affiliate.event") }

# --- payments --------------------------------------------------------------------------------------------------------------------------

my $payments = "/admin$m/bill-payments";
my %cash = (paid_on => $t->value('select current_date'), method => 'bank transfer', %npr);
refused($owner->post("$payments$test", { amount => '10', %cash }), '403 forbidden', 'merchants record no payments');
refused($admin->post("$payments$test", { amount => '0', %cash }), '422 invalid_field', 'nothing');
refused($admin->post("$payments$test", { amount => '-5', %cash }), '422 invalid_field', 'less than nothing');
refused($admin->post("$payments$test", { amount => '10', %cash, paid_on => '2026-02-30' }), '422 invalid_field', 'a day that is none');
refused($admin->post("$payments$test", { amount => '10', %cash, paid_on => '2099-01-01' }), '422 invalid_field', 'a day to come');
refused($admin->post("$payments$test", { amount => '10', %cash, method => '' }), '422 invalid_field', 'no method');
my $first = $admin->post("$payments$test", { amount => '100.00', %cash, reference => 'CHQ-1' })->{json}{payment};
is(join(' ', @{ $owner->get("$bill$test")->{json} }{qw(paid state)}), '160.07 part_paid', 'a part is paid');
my $second = $admin->post("$payments$test", { amount => '50.00', %cash })->{json}{payment};
is(join(' ', @{ $owner->get("$bill$test")->{json} }{qw(paid state)}), '180.07 paid', 'all of it');
is(told(), 'bill.paid 1', 'which is told');
keep('1000.00', test => 1, name => 'T-3');
$r = $owner->post("$m/bills$test", \%npr)->{json};
is("@{$r}{qw(total paid state)}", '120.00 30.00 part_paid', 'what was too much counts for the next');
is(told(), 'bill.paid 1, bill.issued 3', 'so is a new one');
refused($admin->post("$payments/$second/reverse$test", {}), '422 invalid_field', 'a reversal without a reason');
is($admin->post("$payments/$second/reverse$test", { reason => 'It bounced.' })->{json}{reason}, 'It bounced.', 'a payment bounces');
is($admin->post("$payments/$second/reverse$test", { reason => 'Again' })->{json}{reason}, 'It bounced.', 'once');
refused($admin->post("$payments/$second/reverse", { reason => 'Live' }), '404 not_found', 'of the other mode');
is(join(' ', @{ $owner->get("$bill$test")->{json} }{qw(paid state)}), '160.07 part_paid', 'and is open again');
is(join(' ', map { "$_->{amount}" . ($_->{reversed_at} ? ' reversed' : '') } $owner->pages("$m/bill-payments$test")), '50.00 reversed 100.00', 'payments');
is(join(' ', map { $_->{owed} } $owner->pages("$m/owed$test")), '140.00', 'the ledger says the same');
books('payments');

# --- VAT, and who sends them -------------------------------------------------------------------------------------------------------------

refused($admin->patch('/admin/bill-policy', { vat => JSON::PP::true }), '422 invalid_field', 'VAT without a number');
refused($owner->patch('/admin/bill-policy', { seller_name => 'Me' }), '403 forbidden', 'a merchant');
is(problem($admin->patch('/admin/bill-policy', { seller_name => 'Influence <Pvt> Ltd', seller_tax_no => '301234567', vat => JSON::PP::true, note => 'Pay to Nabil 0123', net_days => 0 })), 200, 'a seller');
is($admin->get('/admin/bill-policy')->{json}{seller_name}, 'Influence <Pvt> Ltd', 'shown');
keep('1000.00', test => 1, name => 'T-4');
$r = $owner->post("$m/bills$test", \%npr)->{json};
is("@{$r}{qw(commission fee vat_percent vat total)}", '100.00 20.00 13.00 2.60 122.60', 'with VAT on the fee');
like($owner->get("$m/bills/$r->{bill}/print$test")->{body}, qr{Influence &lt;Pvt&gt; Ltd.*VAT on the network fee, 13\.00 %.*2\.60.*Pay to Nabil 0123}s, 'which the page says');
refund('T-4', test => 1, amount => '500.00');
$r = $owner->post("$m/bills$test", \%npr)->{json};
is("@{$r}{qw(commission fee vat total)}", '-50.00 -10.00 -1.30 -61.30', 'and gives back');
my %moved = map { $_->{code} => $_ } $owner->pages("$m/statements/" . POSIX::strftime('%Y-%m', gmtime) . "/lines$test");
is($moved{bill_vat_credit}{bill}, $r->{bill}, 'a statement names the bill that VAT came with');
ok($moved{bill_payment}{payment}, 'and payments');
books('VAT');

# --- live: by themselves, after the month --------------------------------------------------------------------------------------------------

keep('2000.00', name => 'L-1');
keep('3000.00', name => 'L-2');
$t->psql(q{select affiliate.issue_bills(10)});
is(scalar($owner->pages("$m/bills")), 0, 'the month is not over');
# As if all of it had been two months ago.
$t->psql(<<'END');
set session_replication_role = replica;
update affiliate.transfer set created_at = created_at - interval '65 days' where livemode;
update affiliate.account set created_at = created_at - interval '65 days' where livemode;
END
$t->wait_until('the daemon makes it', sub { scalar($owner->pages("$m/bills")) });
my ($live) = $owner->pages("$m/bills");
is("@{$live}{qw(lines commission fee vat total)}", '2 500.00 100.00 13.00 613.00', 'the bill of that month');
like($live->{number}, qr/^INV-\d{4}-000001$/, 'the first');
like($live->{from}, qr/^\d{4}-\d\d-01T00:00:00/, 'from its first day');
is($t->value(q{select string_agg(distinct template, ' ') from affiliate.notice where template like 'bill%'}), 'bill_issued', 'the owner is told');
$t->psql(q{set session_replication_role = replica; update affiliate.bill set due_on = current_date - 1 where livemode});
$t->wait_until('a reminder', sub { $t->value(q{select count(*) from affiliate.notice where template = 'bill_overdue'}) });
is($owner->get("$m/bills/$live->{bill}")->{json}{state}, 'overdue', 'overdue');
is(scalar($admin->pages('/admin/bills?state=overdue')), 1, 'which the admin finds');
$t->psql('select affiliate.issue_bills(10)') for 1 .. 3;
is($t->value(q{select count(*) from affiliate.notice where template = 'bill_overdue'}), 1, 'who is told once');
is(problem($admin->post($payments, { amount => '613.00', %cash })), 201, 'paid');
is($owner->get("$m/bills/$live->{bill}")->{json}{state}, 'paid', 'it is');
refused($t->client(key => $w->{test_key})->get("$m/bills/$live->{bill}"), '404 not_found', 'a test key sees live bills') if $w->{test_key};
eval { $t->psql('update affiliate.bill set total_minor = 0') };
like($@, qr/never changed|refuse|immutable|can't|not/i, 'no bill is ever changed');
books('at the end');

done_testing();
