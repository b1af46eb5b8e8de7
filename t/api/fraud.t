# Fraud review over HTTP: rules in shadow and what they would have held, a rule in force, the daemon's cases, what they hold, decisions
# with reasons, what payout reviewers see, and who may see any of it.

use Affiliated::Api;

my $t = Affiliated::Api->new;
my $r;

$t->redis_start;
$t->api_start(roles => [qw(api clicks conversions holds projection partitions)], nginx => { affiliate => 1 },
    conf => { api => { rate => 0, rate_address => 0 }, partitions => { interval => '1s' } });
my $w = $t->world(rate => 1000, fee => 2000, hold => '1 hour');
my ($asha, $twin, $owner, $admin) = ($t->person, $t->person, $t->person, $t->person(admin => 1));
$t->cli_json('affiliate', 'update', $w->{affiliate}, '--user', $asha->{user});
$t->cli_json('member', 'create', $w->{merchant}, '--user', $owner->{user}, '--role', 'owner');
my $m = "/merchants/$w->{merchant}";
my $rules = '/admin/fraud-rules';
my $orders = 0;

sub refused { my ($r, $problem, $name) = @_; return is(problem($r), $problem, "refused: $name") || diag $r->{raw} }
sub books { my ($code, $out) = $t->cli('audit'); is($code, 0, "the books hold: $_[0]") or diag $out }
sub state { return $owner->get("$m/orders/$_[0]")->{json}{state} || 'none' }
sub turned { my $n = $t->value('select coalesce(max(case_id), 0) from affiliate.fraud_case'); return $n }

sub sell
{
    my ($order, $id) = ('O-' . ++$orders);

    $t->wait_until('a click', sub { ($id) = ($t->get("/r/$w->{link}")->{headers}{location} || '') =~ /affiliate_click_id=(\w+)/; return $id });
    $t->wait_until('a call', sub { $t->call($w->{key}, { click_id => $id, order_id => $order, status => 'approved', amount => '1000.00', currency => 'NPR' }, idempotency_key => $order)->{status} =~ /^20/ });
    $t->wait_until("$order", sub { state($order) !~ /^(?:none|waiting)\z/ });
    return $order;
}

# --- rules ------------------------------------------------------------------------------------------------------------------------------

refused($owner->get($rules), '403 forbidden', 'a merchant');
refused($asha->get('/admin/fraud-cases'), '403 forbidden', 'an affiliate');
is(join(' ', map { $_->{rule} . ($_->{shadow} ? '' : '!') } sort { $a->{rule} cmp $b->{rule} } $admin->pages($rules)),
    'click_to_order click_verdicts conversion_rate duplicate_destination order_velocity reversal_rate self_referral', 'seven rules, in shadow all');
refused($admin->get("$rules/weather"), '422 invalid_field', 'a rule that is none') if problem($admin->get("$rules/weather", undef, check => 0)) =~ /^422/;
refused($admin->patch("$rules/order_velocity", { shadow => JSON::PP::false }), '422 invalid_field', 'a change without a reason');
refused($admin->patch("$rules/order_velocity", { thresholds => { orders => 1, times => 20 }, reason => 'x' }), '422 invalid_field', 'a threshold out of range');
refused($admin->patch("$rules/order_velocity", { thresholds => { orders => 3 }, reason => 'x' }), '422 invalid_field', 'one that is missing');
refused($admin->patch("$rules/order_velocity", { level => 'jail', reason => 'x' }), '422 invalid_field', 'a level that is none');

# In shadow a case is found, and nothing follows; the preview tells what would.
is(problem($admin->patch("$rules/order_velocity", { thresholds => { orders => 3, times => 2 }, reason => 'Try it' })), 200, 'a rule in shadow');
my @early = map { sell() } 1 .. 3;
$t->wait_until('a case in shadow', sub { grep { $_->{rule} eq 'order_velocity' } $admin->pages('/admin/fraud-cases?state=open') });
my ($shadow) = grep { $_->{rule} eq 'order_velocity' } $admin->pages('/admin/fraud-cases?state=open');
is("$shadow->{affiliate} " . ($shadow->{shadow} ? 'shadow' : ''), "$w->{affiliate} shadow", 'about whom');
is(state(sell()), 'approved', 'an order goes on as before');
is($asha->get('/affiliate/orders')->{json}{data}[0]{state}, 'approved', 'and she sees nothing of it');
$r = $admin->get("$rules/order_velocity/preview?days=30")->{json};
is($r->{rule}, 'order_velocity', 'a preview') or diag explain $r;
refused($admin->get("$rules/order_velocity/preview?days=0"), '422 invalid_field', 'of no days');

# --- in force ------------------------------------------------------------------------------------------------------------------------------

is($admin->patch("$rules/order_velocity", { shadow => JSON::PP::false, level => 'review', reason => 'It works' })->{json}{version}, 3, 'in force');
my $case;
$t->wait_until('a case', sub { ($case) = grep { !$_->{shadow} } $admin->pages('/admin/fraud-cases?state=open'); return $case });
$r = $admin->get("/admin/fraud-cases/$case->{case}")->{json};
like($r->{sentence}, qr/order/i, 'in words');
cmp_ok(scalar keys %{ $r->{figures} }, '>', 0, 'and in figures');
my $held = sell();
$t->wait_until("$held waits", sub { state($held) eq 'review' });
is(state($held), 'review', 'a new order waits for a decision');
my ($hers) = grep { $_->{state} eq 'review' } $asha->pages('/affiliate/orders');
ok($hers && $hers->{sentence} !~ /fraud|velocity|hour/i, 'she is told that it is in review, not by which rule') or diag explain $hers;
is(state($early[0]), 'approved', 'earlier ones are left alone');
books('a case is open');

# --- decisions ------------------------------------------------------------------------------------------------------------------------------

my $path = "/admin/fraud-cases/$case->{case}";
refused($owner->post("$path/dismiss", { reason => 'Ours' }), '403 forbidden', 'a merchant decides nothing');
refused($admin->post("$path/dismiss", {}), '422 invalid_field', 'a decision without a reason');
is($admin->post("$path/dismiss", { reason => 'A sale' })->{json}{state}, 'dismissed', 'dismissed');
$t->wait_until("$held goes on", sub { state($held) eq 'approved' });
is(state($held), 'approved', 'the order goes on');
refused($admin->post("$path/confirm", { reason => 'After all' }), '409 fraud_case_state', 'what is decided is decided');
books('a case was dismissed');

# Confirmed at the level reject: what it held is rejected, because a person said so.
is(problem($admin->patch("$rules/duplicate_destination", { thresholds => { affiliates => 2 }, shadow => JSON::PP::false, level => 'reject', reason => 'Strict' })), 200, 'another rule');
is(problem($twin->post('/affiliate', { display_name => 'Twin', country => 'NP', channels => [{ kind => 'other', url => 'https://twin.example' }], methods => ['content'] })), 201, 'a second affiliate');
my $other = $twin->get('/affiliate')->{json}{affiliate};
$admin->post("/admin/affiliates/$other/approve", {});
$_->post('/affiliate/payout-methods', { kind => 'esewa', holder => 'A', account => '9841234567' }) for $asha, $twin;
$t->wait_until('a case', sub { ($case) = grep { $_->{rule} eq 'duplicate_destination' && $_->{affiliate} == $w->{affiliate} } $admin->pages('/admin/fraud-cases?state=open'); return $case });
$held = sell();
$t->wait_until("$held waits", sub { state($held) eq 'review' });
is($admin->post("/admin/fraud-cases/$case->{case}/confirm", { reason => 'One person' })->{json}{state}, 'confirmed', 'confirmed');
$t->wait_until("$held is rejected", sub { state($held) eq 'rejected' });
is(state($held), 'rejected', 'what it held is rejected');
($hers) = grep { $_->{state} eq 'rejected' } $asha->pages('/affiliate/orders');
ok($hers && length $hers->{sentence}, 'which she can read');
books('a case was confirmed');

# Who looks at a payout sees it.
$t->psql(q{update affiliate.payout_policy set cool_off = '0', minimum_minor = 1; update affiliate.hold set due_at = now()});
$t->wait_until('payable', sub { ($asha->pages('/affiliate/wallet'))[0]{payable} > 0 });
my $payout = $asha->post('/affiliate/payouts', { amount => '10.00', currency => 'NPR' })->{json}{payout};
my %signals = map { $_->{signal} => $_->{detail} } @{ $admin->get("/admin/payouts/$payout")->{json}{signals} };
like(join(' ', %signals), qr/confirmed/, 'a reviewer of payouts sees the case') or diag explain \%signals;
ok(exists $signals{same_destination}, 'and that somebody else has the same account');
ok(scalar(grep { $_->{action} =~ /^fraud/ } $admin->pages('/admin/audit-records?limit=200')) >= 5, 'each decision is on record');

done_testing();
