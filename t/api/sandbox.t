# What lets a merchant integrate alone, over HTTP: keys, the log of calls, dry run, signature check, test clock, magic order ids,
# the checklist.

use Affiliated::Api;

use Digest::SHA ();

my $t = Affiliated::Api->new;

$t->redis_start;
$t->api_start(roles => [qw(api clicks conversions holds projection partitions)], nginx => { affiliate => 1 });
my $admin = $t->person(admin => 1, name => 'Admin');
my $w = $t->world(rate => 1000, fee => 0, hold => '10 days', url => 'http://127.0.0.1/shop');
my $merchant = $t->person(name => 'Maya');
$t->psql("insert into affiliate.member (merchant_id, user_id, role) values ($w->{merchant}, $merchant->{user}, 'owner')");
my $other = $t->person(name => 'Other');
my $at = "/merchants/$w->{merchant}";

sub item
{
    my ($item) = @_;
    my ($found) = grep { $_->{item} eq $item } @{ $merchant->get("$at/checklist")->{json}{items} };

    return $found->{done} ? 'done' : $found->{hint};
}

sub verdicts { return join ' ', map { "$_->{check}:$_->{verdict}" } grep { $_->{verdict} ne 'passed' } @{ $_[0]{json}{checks} } }

# --- keys ------------------------------------------------------------------------------------------------------------

like(item('site_verified'), qr/TXT/, 'what is not done has a hint');
my $r = $merchant->post("$at/keys", { livemode => JSON::PP::false, label => 'Shop' });
is(problem($r), 201, 'a key is made');
my $key = { id => $r->{json}{key}, secret => $r->{json}{secret}, merchant => $w->{merchant} };
like("$key->{id} $key->{secret}", qr/^ak_test_\w{20} aks_test_\w{43}\z/, 'with its secret');
is(problem($merchant->post("$at/keys", { livemode => JSON::PP::false })), '409 too_many_keys', 'a third is too many');
is(problem($other->get("$at/keys")), '404 not_found', 'nobody else sees them');
is(problem($merchant->patch("$at/keys/$key->{id}", { label => 'Till' })), 200, 'a label');
unlike($merchant->get("$at/keys?livemode=false")->{raw}, qr/aks_/, 'the list has no secret');

# --- a dry run ---------------------------------------------------------------------------------------------------------

$t->wait_until('the link is known', sub { $t->get("/r/$w->{test_link}")->{status} == 302 });
my ($id) = $t->get("/r/$w->{test_link}")->{headers}{location} =~ /affiliate_click_id=([0-9a-z]+)/;
my $event = { click_id => $id, order_id => 'A-1', status => 'approved', amount => '100.00', currency => 'NPR' };
my $body = JSON::PP->new->canonical->encode($event);
my $mine = $t->client(key => $key);
$t->wait_until('the click', sub { $t->value('select count(*) from affiliate.click where not livemode') });

$r = $mine->post("$at/dry-runs", { body => $body });
is(problem($r), 200, 'a dry run, signed with a key');
is(verdicts($r), '', 'each check passed') or diag($r->{raw});
is($r->{json}{order}{commission}, '10.00', 'what would be paid');
like($r->{json}{order}{payable_at}, qr/^\d{4}-/, 'and when');
is(verdicts($mine->post("$at/dry-runs", { body => '{"a": ' })), 'json:failed', 'no JSON');
$r = $mine->post("$at/dry-runs", { body => JSON::PP::encode_json({ %$event, amount => '1,5' }) });
is($r->{json}{checks}[-1]{errors}[0]{pointer}, '/amount', 'a wrong field');
is(verdicts($mine->post("$at/dry-runs", { body => JSON::PP::encode_json({ %$event, click_id => 'x' }) })), 'click_id:failed', 'a wrong click_id');
is(verdicts($mine->post("$at/dry-runs", { body => JSON::PP::encode_json({ %$event, order_id => 'TEST-REVIEW' }) })),
    'review:review amount:skipped', 'a magic order id');

my %call = (body => $body, key => $key->{id}, timestamp => int(time) . '', idempotency_key => 'k-1', path => '/v1/conversions');
my $text = join "\n", 'v1', $call{timestamp}, 'POST', $call{path}, 'k-1', $body;
$call{signature} = 'v1=' . Digest::SHA::hmac_sha256_hex($text, $key->{secret});
$r = $merchant->post("$at/dry-runs", \%call);
is(verdicts($r) . " $r->{json}{order}{livemode}", ' 0', 'a signed call, as a person, in the mode of its key') or diag($r->{raw});
$r = $merchant->post("$at/dry-runs", { %call, path => '/v1/conversions?x=1' });
is(verdicts($r), 'signature:failed', 'signed without its query');
like($r->{json}{checks}[-1]{detail}, qr/query is not signed/, 'which is told');
is(verdicts($merchant->post("$at/dry-runs", { %call, timestamp => int(time) - 1000 . '' })), 'clock:failed signature:failed', 'an old one');
is(verdicts($merchant->post("$at/dry-runs", { %call, key => 'ak_test_0123456789ABCDEFabcd' })), 'key:failed', 'an unknown key');
is($t->value('select count(*) from affiliate.conversion'), 0, 'nothing of it was recorded');

# --- what was signed -----------------------------------------------------------------------------------------------------

delete $call{livemode};
$r = $merchant->post("$at/signature-check", { %call, string_to_sign => $text =~ s/POST/post/r });
ok($r->{json}{valid}, 'the signature is the call\'s');
is(join(' ', map { $_->{line} } grep { !$_->{same} } @{ $r->{json}{lines} }), 'method', 'the line that differs');
$r = $merchant->post("$at/signature-check", { %call, signature => 'v1=' . Digest::SHA::hmac_sha256_hex("$text\n", $key->{secret}) });
ok(!$r->{json}{valid}, 'another is not');
like($r->{json}{mistake}, qr/line break behind it/, 'and the mistake is found');
is(problem($other->post("$at/signature-check", \%call)), '404 not_found', 'for nobody else');
unlike($r->{raw}, qr/\Q$key->{secret}\E/, 'without the secret');

# --- calls ---------------------------------------------------------------------------------------------------------------

$t->wait_until('the key is known', sub { $t->call($key, $event, idempotency_key => 'k-1')->{status} =~ /^20/ });
is($t->call($key, $event, idempotency_key => 'k-1')->{status}, 200, 'a retry');
is($t->call({ %$key, secret => 'x' }, $event)->{status}, 401, 'a forged call');
$t->wait_until('the log', sub { @{ $merchant->get("$at/keys/$key->{id}/calls")->{json}{data} } >= 3 });
my %codes = map { ($_->{code} || 'accepted') => $_ } $merchant->pages("$at/keys/$key->{id}/calls");
is(join(' ', sort keys %codes), 'accepted bad_signature repeated', 'the log of calls');
like($codes{bad_signature}{hint}, qr/signature check/, 'says what to do');
$t->wait_until('the checklist', sub { item('retry_seen') eq 'done' });
is(item('signed_call_accepted') . item('approval_seen') . item('test_link_followed'), 'donedonedone', 'the checklist turns green');
isnt(item('refund_seen'), 'done', 'but for what was not done');

# --- the clock -----------------------------------------------------------------------------------------------------------

is(problem($other->post("$at/test-clock", { advance => '1 day' })), '404 not_found', 'nobody else moves the clock');
$r = $merchant->post("$at/test-clock", { advance => '11 days' });
is($r->{json}{ahead_seconds}, 11 * 86400, 'the clock is moved');
$t->wait_until('the hold to end', sub { $t->value(q{select coalesce(sum(credits_minor), 0) from affiliate.account where kind = 'payable' and not livemode}) == 1000 });
is($t->value(q{select sum(credits_minor) from affiliate.account where kind = 'payable' and not livemode}), 1000, 'and the order is payable');
is(problem($merchant->post("$at/test-clock", { advance => '-1 day' })), '422 invalid_field', 'never back');
is($mine->get("$at/test-clock")->{json}{ahead_seconds}, 11 * 86400, 'it stays');
cmp_ok(scalar($merchant->pages("$at/magic-orders")), '>', 20, 'magic order ids are listed');

is(problem($merchant->post("$at/keys/$key->{id}/revoke")), 200, 'the key is revoked');
my ($code, $out) = $t->cli('audit');
is($code, 0, 'and the books are right') or diag($out);

done_testing();
