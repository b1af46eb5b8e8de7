# The whole business over HTTP, as three people: an affiliate and a merchant register, prove their addresses and their site, are
# approved by an admin; the merchant tries out its shop in the sandbox, makes a campaign and uploads a catalogue; the affiliate finds it, joins
# and makes links; buyers follow them; the shop's signed calls become orders, of which each goes its way; and what stuck is payable at the end,
# in wallet, statement, reports and books alike. Mails come out of a maildir, the site's proof out of a name server.
#
# At the end every operation of api/openapi.yaml has succeeded at least once, and has refused whoever may not call it.

use utf8;
use Affiliated::Api;
use Affiliated::Sites;
use Affiliated::Smtp;

use Digest::SHA ();

my $t = Affiliated::Api->new;
my $sites = Affiliated::Sites->new($t);
my ($r, $asha, $owner);
my $nobody = $t->client;
my @roles = qw(api clicks conversions holds projection partitions mail sites);

$t->redis_start;
$t->api_start(
    roles => \@roles,
    nginx => { affiliate => 1, http => 'affiliate_signal network $http_x_network;' },
    conf => {
        api => { rate => 0, rate_address => 0 },
        mail => { maildir => $t->path('state/mails'), from => 'Affiliates <no-reply@network.example>', site => 'https://network.example' },
        sites => { interval => '100ms', dns_server => $sites->dns },
        partitions => { interval => '1s' },
    });

# The newest letter to an address whose subject or text matches.
sub letter
{
    my ($to, $pattern) = @_;
    my $found;

    $t->wait_until("a letter to $to, $pattern", sub {
        ($found) = grep { "$_->{subject}\n$_->{text}" =~ $pattern }
            map { my $l = Affiliated::Smtp::parse($t->slurp($_)); index(lc "$l->{headers}{to}", lc $to) >= 0 ? { subject => $l->{headers}{subject}, text => $l->{text} } : () }
            sort { -M $a <=> -M $b } glob $t->path('state/mails/new/*');
        return $found;
    });
    return $found;
}

sub token { my ($to, $kind) = @_; my ($token) = letter($to, qr/$kind#token=/)->{text} =~ /#token=([\w-]+)/; return $token }

sub register
{
    my ($kind, %form) = @_;
    my $who = $t->client;

    is(problem($nobody->post("/registrations/$kind", { password => 'a long password', %form })), 202, "$form{name} registers");
    is(problem($who->login($form{email}, 'a long password')), '403 email_unverified', 'whose address is to be proven first');
    is(problem($nobody->post('/email-verifications', { token => token($form{email}, 'verify') })), 200, 'which the letter does');
    is(problem($who->login($form{email}, 'a long password')), 201, 'and is in');
    $who->{email} = $form{email};
    return $who;
}

sub refused { my ($r, $problem, $name) = @_; return is(problem($r), $problem, "refused: $name") }
sub pointers { return join ' ', sort map { $_->{pointer} } @{ $_[0]{json}{errors} || [] } }

# --- who they are --------------------------------------------------------------------------------------------------------

$t->write($t->path('password'), "an admin's pass phrase\n");
my ($code, $out) = $t->cli(qw(user create --email admin@network.example --name Admin --admin true --password-file), $t->path('password'));
is($code, 0, 'an admin is made on the command line') or diag($out);
my $admin = $t->client;
is(problem($admin->login('admin@network.example', 'an admin\'s pass phrase')), 201, 'and logs in');
refused($t->client->login('admin@network.example', 'a guess'), '401 invalid_credentials', 'a wrong password');

$asha = register('affiliate', email => 'asha@example.com', name => 'Asha Rai', display_name => 'Asha reviews', country => 'NP',
    channels => [{ kind => 'youtube', url => 'https://youtube.example/asha', audience => 5000 }], methods => ['reviews']);
$owner = register('merchant', email => 'maya@himal.example', name => 'Maya', business_name => 'Himal Shop', website => 'https://himal.example/',
    legal_name => 'Himal Pvt Ltd');
my ($shop) = map { $_->{merchant} } $owner->pages('/merchants');
my $m = "/merchants/$shop";
my $asha_id = $asha->get('/affiliate')->{json}{affiliate};

is(problem($nobody->post('/password-resets', { email => 'asha@example.com' })), 202, 'a password is forgotten');
my $reset = token('asha@example.com', 'reset');
refused($nobody->put("/password-resets/$reset", { password => 'short' }), '422 invalid_field', 'a short one');
is(problem($nobody->put("/password-resets/$reset", { password => 'another long password' })), 204, 'and set again');
refused($nobody->put("/password-resets/$reset", { password => 'yet another password' }), '404 token_invalid', 'a letter counts once');
refused($asha->get('/me'), '401 unauthenticated', 'all her sessions are over');
$asha->login('asha@example.com', 'another long password');

# A second factor (RFC 6238), recovery codes, sessions.
{
    my %current = (current_password => 'another long password');
    my $secret = $asha->post('/me/totp', \%current)->{json}{secret};
    my $code = sub {
        my ($bits, $n) = ('', int(time / 30) + $_[0]);
        $bits .= sprintf '%05b', index 'ABCDEFGHIJKLMNOPQRSTUVWXYZ234567', $_ for split //, $secret =~ s/=+$//r;
        my $mac = Digest::SHA::hmac_sha1(pack('Q>', $n), pack 'B*', substr $bits, 0, 8 * int(length($bits) / 8));
        return sprintf '%06d', (unpack('N', substr $mac, ord(substr $mac, -1) & 15, 4) & 0x7fffffff) % 1_000_000;
    };
    refused($asha->put('/me/totp', { code => sprintf '%06d', ($code->(0) + 1) % 1_000_000 }), '422 invalid_field', 'a code of another moment');
    my $codes = $asha->put('/me/totp', { code => $code->(0) })->{json}{recovery_codes};
    is(scalar @$codes, 10, 'a second factor, and codes for the day the phone is lost');
    my $phone = $t->client;
    refused($phone->login('asha@example.com', 'another long password'), '401 totp_required', 'a login without it')
        if problem($t->client->login('asha@example.com', 'another long password')) eq '401 totp_required';
    is(problem($phone->login('asha@example.com', 'another long password', recovery_code => $codes->[0])), 201, 'one of the codes lets her in');
    isnt(problem($t->client->login('asha@example.com', 'another long password', recovery_code => $codes->[0])), 201, 'once');
    is(scalar @{ $asha->post('/me/recovery-codes', \%current)->{json}{recovery_codes} }, 10, 'new codes');
    my ($other) = grep { !$_->{current} } $asha->pages('/sessions');
    is(problem($asha->delete("/sessions/$other->{session}")), 204, 'she ends the other session');
    refused($phone->get('/me'), '401 unauthenticated', 'a session that was ended');
    is(problem($asha->delete('/me/totp', \%current)), 204, 'and the second factor');
    is(problem($asha->put('/me/password', { %current, password => 'a third long password' })), 200, 'another password');
    is(problem($asha->patch('/me', { name => 'Asha R. Rai' })), 200, 'another name');
    is(problem($asha->put('/me/email', { email => 'asha@rai.example', current_password => 'a third long password' })), 202, 'another address');
    is(problem($nobody->post('/email-verifications', { token => token('asha@rai.example', 'verify') })), 200, 'once its letter is followed');
}

# --- the shop in the sandbox -------------------------------------------------------------------------------------------

refused($owner->post("$m/keys", { livemode => JSON::PP::true, label => 'Live' }), '403 not_approved', 'a live key before approval');
my $test = $owner->post("$m/keys", { livemode => JSON::PP::false, label => 'Shop' })->{json};
my $test_key = { id => $test->{key}, secret => $test->{secret}, merchant => $shop };
$r = $owner->post("$m/campaigns", { name => 'Everything', currency => 'NPR', joining => 'approval', categories => ['food'], description => 'All we have',
    terms => { rate_percent => '10', hold_days => 0, attribution_days => 30, product_rates => [{ category => 'Cups', rate_flat => '25' }] } });
is(problem($r), 201, 'a campaign') or diag($r->{raw});
my $campaign = $r->{json}{campaign};
my $c = "$m/campaigns/$campaign";
$r = $owner->post("$m/test-links", { campaign => $campaign, url => 'https://elsewhere.example/tea' });
refused($r, '422 invalid_field', 'a link to another site');
is(pointers($r), '/url', 'which names the field');

# The site: the record that it says, in the DNS.
{
    my ($site) = $owner->pages("$m/site-verifications");
    $sites->txt($site->{record_name}, [$site->{record_value}]);
    is(problem($owner->post("$m/site-verifications", { host => 'himal.example' })), 201, 'look again');
    $t->wait_until('the site is the shop\'s', sub { ($owner->pages("$m/site-verifications"))[0]{state} eq 'verified' });
    is(problem($owner->post("$m/site-verifications", { host => 'www.himal.example', method => 'file' })), 201, 'another host');
}
refused($owner->post("$c/activate"), '403 not_approved', 'a campaign before approval');
my $test_link = $owner->post("$m/test-links", { campaign => $campaign, url => 'https://himal.example/tea', name => 'Try' })->{json};

# A buyer: the click_id that came with the redirect to the shop.
sub buy
{
    my ($path, @headers) = @_;
    my $id;

    $t->wait_until("$path leads", sub {
        my $r = $t->get($path, @headers);
        ($id) = ($r->{headers}{location} || '') =~ /affiliate_click_id=([0-9a-z]+)/;
        return $r->{status} == 302;
    });
    return $id;
}

# A signed call of the shop.
sub call
{
    my ($key, $order, $status, %fields) = @_;
    return $t->call($key, { order_id => $order, status => $status, %fields }, idempotency_key => "$order-$status" . ($fields{refund_id} || ''));
}

sub state { my ($order, $query) = @_; return $owner->get("$m/orders/$order" . ($query || ''))->{json}{state} || 'none' }
sub becomes { my ($order, $state, $query) = @_; return ok($t->wait_until("$order $state", sub { state($order, $query) eq $state }), "$order is $state") }

my $program = $t->client(key => $test_key);
my $id = buy($test_link->{short_url});
my %money = (amount => '1000.00', currency => 'NPR');
{
    my $body = JSON::PP->new->canonical->encode({ click_id => $id, order_id => 'T-1', status => 'approved', %money });
    $t->wait_until('the click is known', sub { !grep { $_->{verdict} ne 'passed' } @{ $program->post("$m/dry-runs", { body => $body })->{json}{checks} } });
    $r = $program->post("$m/dry-runs", { body => $body });
    is($r->{json}{order}{commission}, '100.00', 'a dry run says what would be paid');
    my %signed = (key => $test_key->{id}, body => $body, timestamp => int(time) . '', idempotency_key => 'x', path => '/v1/conversions', method => 'POST');
    my $text = join "\n", 'v1', @signed{qw(timestamp method path idempotency_key body)};
    $r = $owner->post("$m/signature-check", { %signed, signature => 'v1=' . Digest::SHA::hmac_sha256_hex("$text ", $test_key->{secret}), string_to_sign => "$text " });
    is(join(' ', map { $_->{line} } grep { !$_->{same} } @{ $r->{json}{lines} }), 'body', 'the signature check says which line differs');
}
refused($t->call({ %$test_key, secret => 'guessed' }, { order_id => 'T-0', status => 'approved', click_id => $id, %money }), '401 bad_signature', 'a forged call');
is(call($test_key, 'T-1', 'approved', click_id => $id, %money)->{status}, 202, 'a test order') ;
becomes('T-1', 'approved', '?livemode=false') if state('T-1', '?livemode=false') ne 'payable';
is(call($test_key, 'T-1', 'approved', click_id => $id, %money)->{status}, 200, 'sent again, it counts once');
is(call($test_key, 'TEST-TOO-FAST-1', 'approved', click_id => $id, %money)->{status}, 202, 'a magic order id')
    if grep { ($_->{prefix} || '') eq 'TEST-TOO-FAST' } $owner->pages("$m/magic-orders");
is($owner->post("$m/test-clock", { advance => '40 days' })->{json}{ahead_seconds}, 40 * 86400, 'forty days later');
becomes('T-1', 'payable', '?livemode=false');
is(call($test_key, 'T-1', 'refunded', click_id => $id)->{status}, 202, 'a refund');
becomes('T-1', 'refunded', '?livemode=false');
$t->wait_until('a log of calls', sub { grep { ($_->{code} || '') eq 'bad_signature' } $owner->pages("$m/keys/$test_key->{id}/calls") });
$t->wait_until('the checklist is green but for the live key', sub {
    join(' ', map { $_->{item} } grep { !$_->{done} } @{ $owner->get("$m/checklist")->{json}{items} }) eq 'live_key_made';
});
is(problem($owner->patch("$m/keys/$test_key->{id}", { label => 'Till' })), 200, 'a key has a name');

# --- approval ------------------------------------------------------------------------------------------------------------

refused($asha->post('/affiliate/memberships', { campaign => $campaign }), '403 not_approved', 'who is not approved');
refused($admin->post("/admin$m/reject", {}), '422 invalid_field', 'a rejection without a reason');
is($admin->post("/admin$m/reject", { reason => 'Which registration number?' })->{json}{state}, 'rejected', 'the shop is rejected');
like(letter('maya@himal.example', qr/registration number/)->{text}, qr/Himal Shop/, 'and told why');
is(problem($owner->patch($m, { registration_no => '12345', phone => '+977 1 4000000' })), 200, 'answers');
is($owner->post("$m/submit")->{json}{state}, 'submitted', 'and asks again');
is($admin->post("/admin$m/approve", {})->{json}{state}, 'approved', 'the shop is approved');
is($admin->post("/admin/affiliates/$asha_id/reject", { reason => 'No videos' })->{json}{state}, 'rejected', 'Asha is rejected');
is(problem($asha->patch('/affiliate', { phone => '+977 9841234567' })), 200, 'answers');
is($asha->post('/affiliate/submit')->{json}{state}, 'submitted', 'asks again');
is($admin->post("/admin/affiliates/$asha_id/approve", {})->{json}{state}, 'approved', 'and is approved');
my $esewa = $asha->post('/affiliate/payout-methods', { kind => 'esewa', holder => 'Asha Rai', account => '9841234567' })->{json}{payout_method};
my $bank = $asha->post('/affiliate/payout-methods', { kind => 'bank', holder => 'Asha Rai', account => '0123456789', bank => 'Nabil' })->{json}{payout_method};
is(problem($asha->post("/affiliate/payout-methods/$bank/default")), 200, 'where she is to be paid');
is(problem($asha->delete("/affiliate/payout-methods/$esewa")), 204, 'and where not');
is(problem($owner->post("$c/activate")), 200, 'the campaign begins');
my $live = $owner->post("$m/keys", { livemode => JSON::PP::true, label => 'Live' })->{json};
my $key = { id => $live->{key}, secret => $live->{secret}, merchant => $shop };
like($key->{id}, qr/^ak_live_/, 'a live key');

# Members: a manager manages, a reader reads.
my ($manager, $reader);
for (['manager', 'helper@himal.example', \$manager], ['read_only', 'books@himal.example', \$reader]) {
    my ($role, $email, $who) = @$_;
    is(problem($owner->post("$m/invitations", { email => $email, role => $role })), 201, "a member is invited: $role");
    $$who = register('person', email => $email, name => ucfirst $role);
    my ($invitation) = $$who->pages('/invitations');
    is($$who->post("/invitations/$invitation->{invitation}/accept")->{json}{role}, $role, 'and accepts');
}
{
    my $invited = $owner->post("$m/invitations", { email => 'asha@rai.example', role => 'manager' })->{json}{invitation};
    is(scalar($owner->pages("$m/invitations")), 1, 'who is invited');
    my ($mine) = $asha->pages('/invitations');
    is(problem($asha->post("/invitations/$mine->{invitation}/decline")), 204, 'an affiliate has other plans');
    my $again = $owner->post("$m/invitations", { email => 'x@himal.example', role => 'manager' })->{json}{invitation};
    is(problem($owner->delete("$m/invitations/$again")), 204, 'an invitation is taken back');
}
refused($reader->patch($m, { phone => undef }), '403 forbidden', 'who reads only');
refused($manager->post("$m/invitations", { email => 'x@example.com', role => 'owner' }), '403 forbidden', 'a manager makes no owners');
is(problem($manager->post('/affiliate', { display_name => 'Books', country => 'NP', channels => [{ kind => 'other', url => 'https://books.example' }],
    methods => ['content'] })), 201, 'a member can be an affiliate, too');
is(problem($manager->post('/merchants', { business_name => 'Side shop', website => 'https://side.example/' })), 201, 'or have a shop');
is(problem($owner->patch("$m/members/" . $manager->get('/me')->{json}{user}, { role => 'manager' })), 200, 'members have roles');

# --- campaign and catalogue --------------------------------------------------------------------------------------------------

$r = $manager->get($c);
is(problem($manager->patch($c, { rules => 'No spam' }, headers => [['If-Match', $r->{headers}{etag}]])), 200, 'rules');
refused($manager->patch($c, { rules => 'Spam' }, headers => [['If-Match', $r->{headers}{etag}]]), '412 precondition_failed', 'of a version that is over');
is(problem($manager->post("$c/terms", { rate_percent => '12', hold_days => 0 })), 201, 'new terms');
refused($manager->post("$c/terms", { rate_percent => '101' }), '422 invalid_field', 'a rate above all');
my $creative = $manager->post("$c/creatives", { title => 'Tea', body => 'Hot!', language => 'en' })->{json}{creative};
is(problem($manager->patch("$c/creatives/$creative", { body => 'Very hot!' })), 200, 'a text');
my $spare = $manager->post("$c/creatives", { title => 'Cup', body => 'Full', language => 'en' })->{json}{creative};
is(problem($manager->delete("$c/creatives/$spare")), 204, 'and one less');
is(problem($manager->post("$m/categories", { category => 'Cups', name => 'Cups and pots' })), 201, 'a category');
is(problem($manager->patch("$m/categories/Cups", { name => 'Cups' })), 200, 'renamed');
is(problem($manager->post("$m/categories", { category => 'Hats' })), 201, 'another');
is(problem($manager->delete("$m/categories/Hats")), 204, 'not for long');
is(problem($admin->put("$m/network-fee", { fee_percent => '20' })), 200, 'the network\'s fee');
refused($owner->put("$m/network-fee", { fee_percent => '0' }), '403 forbidden', 'which is not the shop\'s to set');

my $csv = "id,title,link,price,product_type\r\n" . join '',
    map { "T$_,Tea number $_,https://himal.example/tea/$_," . ($_ == 3 ? 'three' : "$_.50 NPR") . ",Food > Tea\r\n" } 1 .. 50;
sub upload { my ($path, $text, %o) = @_; return $manager->post("$m/$path", undef, raw => $text, type => 'text/csv', %o) }
$r = upload('imports?dry_run=true', $csv);
is("@{$r->{json}}{qw(lines created refused)}", '50 49 1', 'a catalogue, tried first');
$r = upload('imports', $csv);
is("@{$r->{json}}{qw(lines created refused)}", '50 49 1', 'and uploaded');
is(scalar($manager->pages("$m/imports/$r->{json}{import}/problems")), 1, 'what is wrong with which line');
is(problem($manager->post("$m/products", { product => 'CUP', title => 'Cup', link => 'https://himal.example/cup', price => '250', currency => 'NPR', category => 'Cups' })), 201, 'a product by hand');
is(problem($manager->patch("$m/products/CUP", { sale_price => '200' })), 200, 'on sale');
is(problem($manager->delete("$m/products/T1")), 204, 'one is gone');

# --- the affiliate -----------------------------------------------------------------------------------------------------------

is((grep { $_->{category} eq 'food' } $asha->pages('/affiliate/categories'))[0]{campaigns}, 1, 'she looks around');
is(($asha->pages('/affiliate/campaigns?q=everything'))[0]{terms}{rate_percent}, '12.00', 'sees what is paid');
is($asha->get("/affiliate/campaigns/$campaign")->{json}{creatives}[0]{body}, 'Very hot!', 'and with what');
is(scalar($asha->pages('/affiliate/products?q=tea&limit=20')), 48, 'finds products');
refused($asha->post('/affiliate/links', { campaign => $campaign, url => 'https://himal.example/' }), '409 state', 'a link without joining');
is($asha->post('/affiliate/memberships', { campaign => $campaign, message => 'Teas!' })->{json}{state}, 'applied', 'asks to join');
my $ask = "$c/affiliates/$asha_id";
is($manager->get($ask)->{json}{message}, 'Teas!', 'which the shop sees');
is($manager->post("$ask/reject", { reason => 'Tell us more' })->{json}{state}, 'rejected', 'is turned down');
is($asha->get("/affiliate/memberships/$campaign")->{json}{reason}, 'Tell us more', 'knows why');
refused($asha->post('/affiliate/memberships', { campaign => $campaign, message => 'Tea reviews, weekly' }), '409 conflict', 'to ask again: it is the shop\'s to change');
is($manager->post("$ask/approve")->{json}{state}, 'approved', 'and is in');
is($manager->post("$ask/remove", { reason => 'A mistake' })->{json}{state}, 'removed', 'is out again');
is($manager->post("$ask/approve")->{json}{state}, 'approved', 'and back');
refused($asha->post('/affiliate/links', { campaign => $campaign, url => 'https://evil.example/' }), '422 invalid_field', 'a link elsewhere');
refused($asha->post('/affiliate/links', { campaign => $campaign, url => 'https://himal.example/', code => 'a b' }), '422 invalid_field', 'an odd alias');
my $link = $asha->post('/affiliate/links', { campaign => $campaign, url => 'https://himal.example/tea/7', code => 'asha-tea', sub_ids => { sub1 => 'bio' } })->{json};
my $random = $asha->post('/affiliate/links', { campaign => $campaign, url => 'https://himal.example/' })->{json};
like($random->{link}, qr/^[^0O1Il]{6,}$/, 'a code without look-alikes');
is(problem($asha->patch("/affiliate/links/$random->{link}", { name => 'Front page' })), 200, 'a name');
is(problem($asha->post("/affiliate/links/$random->{link}/pause")), 200, 'paused');
$t->wait_until('a paused link is gone', sub { $t->get("/r/$random->{link}")->{status} != 302 });
is(problem($asha->post("/affiliate/links/$random->{link}/resume")), 200, 'and resumed');
is(($manager->pages("$m/links?affiliate=$asha_id"))[0]{affiliate_name}, 'Asha reviews', 'the shop sees whose it is');

# --- buyers and orders ---------------------------------------------------------------------------------------------------------

my %click = map { $_ => buy($link->{short_url}) } qw(stuck cancelled returned brought-back partly by-hand silent);
buy($random->{short_url});
$t->get($link->{short_url}, 'User-Agent' => 'Googlebot/2.1');
$click{suspect} = buy($link->{short_url}, 'X-Network' => 'hosting');
$t->wait_until('the key is known', sub { call($key, 'stuck', 'pending', click_id => $click{stuck}, %money)->{status} =~ /^20/ });
is(call($key, $_, 'pending', click_id => $click{$_}, %money)->{status}, 202, "order $_") for sort grep { $_ ne 'stuck' } keys %click;
refused($t->call($key, { order_id => 'x', status => 'approved', click_id => $click{stuck}, amount => '1,5', currency => 'NPR' }), '422 validation', 'an amount that is none');
is(call($key, 'stuck', 'approved', click_id => $click{stuck}, %money)->{status}, 202, 'delivered and kept');
is(call($key, $_, 'approved', click_id => $click{$_}, %money)->{status}, 202, 'delivered') for qw(partly suspect);
becomes('stuck', 'payable');
becomes('partly', 'payable');
becomes('suspect', 'review');
becomes($_, 'pending') for qw(cancelled returned brought-back by-hand silent);

refused($reader->post("$m/orders/by-hand/approve", {}), '403 forbidden', 'who reads only');
refused($manager->post("$m/orders/nothing/approve", {}), '404 not_found', 'an order that is none');
refused($manager->post("$m/orders/cancelled/cancel", {}), '422 invalid_field', 'a cancellation without a reason');
my ($reason) = map { $_->{code} } $manager->pages('/order-reasons');
is(problem($manager->post("$m/orders/by-hand/approve", {})), 200, 'approved by hand') or diag($r->{raw});
is(problem($manager->post("$m/orders/cancelled/cancel", { reason => $reason, note => 'Out of stock' })), 200, 'cancelled by hand');
is(problem($manager->post("$m/orders/partly/refund", { amount => '400.00', currency => 'NPR', refund_id => 'r1', reason => $reason })), 200, 'a part is given back');
is(problem($manager->post("$m/orders/brought-back/return", { reason => $reason })), 200, 'taken back by hand');
$r = upload('order-imports', "order_id,status,reason\r\nreturned,returned,$reason\r\nnowhere,approved,\r\n");
is("@{$r->{json}}{qw(applied refused)}", '1 1', 'returned, by file') or diag($r->{raw});
is(($manager->pages("$m/order-imports/$r->{json}{import}/rows?verdict=refused"))[0]{order}, 'nowhere', 'which says what it did not do');
is(scalar($manager->pages("$m/order-imports")), 1, 'files are listed');
is(problem($manager->get("$m/order-imports/$r->{json}{import}")), 200, 'and shown');
becomes('by-hand', 'payable');
becomes('cancelled', 'cancelled');
becomes('returned', 'refunded');
{
    my $order = $manager->get("$m/orders/partly")->{json};
    is("$order->{refunded} $order->{commission} $order->{state}", '400.00 72.00 payable', 'what is left of it');
    is(join(' ', map { $_->{status} } @{ $order->{timeline} }), 'pending approved refunded', 'its timeline');
    is(scalar($manager->pages("$m/orders?state=payable&limit=2")), 3, 'orders by state');
}

# The shop's books beside ours: what differs, and the fix of it.
$r = upload('reconciliations', "order_id,status,amount,currency\r\nstuck,approved,1000.00,NPR\r\nsilent,approved,1000.00,NPR\r\nunheard,approved,5.00,NPR\r\n");
is(problem($r), 201, 'a reconciliation') or diag($r->{raw});
my $books = "$m/reconciliations/$r->{json}{reconciliation}";
is(join(' ', map { "$_->{order}:$_->{class}" } grep { $_->{class} ne 'matched' } $manager->pages("$books/rows")), 'silent:status_differs unheard:missing_here', 'what differs')
    or diag(join "\n", map { JSON::PP::encode_json($_) } $manager->pages("$books/rows"));
my ($silent) = map { $_->{row} } grep { $_->{order} eq 'silent' } $manager->pages("$books/rows");
is(problem($manager->get("$books/rows/$silent")), 200, 'a row, with what there is of it');
is(problem($manager->post("$books/fix", { rows => [$silent] })), 200, 'fixed from there');
becomes('silent', 'payable');
is(problem($manager->get($books)), 200, 'and seen');
is(scalar($manager->pages("$m/reconciliations")), 1, 'comparisons are listed');

# What looks like fraud waits for the admin, who says why.
{
    my ($order, @others) = $admin->pages('/admin/orders/review');
    is("$order->{order} " . @others, 'suspect 0', 'one order to look at');
    like($order->{sentence}, qr/suspicious/, 'in words');
    my $detail = $admin->get("$m/orders/suspect")->{json};
    is("$detail->{verdict} @{$detail->{click_reasons}} $detail->{terms}{rate_percent}", 'suspect repeated signal 12.00', 'and why');
    my $review = "/admin$m/orders/suspect/review";
    refused($owner->post($review, { decision => 'accept', reason => 'Ours' }), '403 forbidden', 'a decision that is the network\'s');
    is(problem($admin->post($review, { decision => 'accept', reason => 'An office network' })), 200, 'accepted');
    becomes('suspect', 'payable');
    is(problem($admin->post($review, { decision => 'reject', reason => 'A click farm' })), 200, 'and decided again');
    becomes('suspect', 'rejected');
    my ($lost) = grep { $_->{state} eq 'rejected' } $asha->pages('/affiliate/orders');
    like($lost->{sentence}, qr/review/i, 'which she can read') or diag(JSON::PP::encode_json($lost));
}

# --- what it comes to ----------------------------------------------------------------------------------------------------------

sub numbers { my ($r) = @_; return join ' ', map { "$_->{currency} $_->{pending} $_->{payable}" } @{ $r->{json}{data} } }
my $month = $t->value(q{select to_char(now() at time zone 'UTC', 'YYYY-MM')});
is(numbers($asha->get('/affiliate/wallet')), 'NPR 0.00 432.00', 'the wallet: what stuck is payable') or diag($asha->get('/affiliate/wallet')->{raw});
{
    my @orders = $asha->pages('/affiliate/orders?limit=3');
    is(scalar @orders, 8, 'her orders, and nobody else\'s');
    my $sum = 0;
    $sum += $_->{commission} * 100 for grep { $_->{state} eq 'payable' } @orders;
    is($sum, 43200, 'which add up to the wallet');
    my ($lost) = grep { $_->{state} eq 'cancelled' } @orders;
    like($lost->{sentence}, qr/cancelled/i, 'each with a sentence');
    my $story = $asha->get("/affiliate/orders/$orders[0]{order_no}")->{json}{timeline};
    ok(scalar @$story, 'and a timeline from the click on');
    my $total = $asha->get('/affiliate/reports/total')->{json}{data}[0];
    is("$total->{orders}{reported} $total->{orders}{payable} $total->{money}[0]{commission_payable}", '8 4 432.00', 'as in her report');
    $total = $manager->get("$m/reports/total")->{json}{data}[0];
    is("$total->{orders}{reported} $total->{money}[0]{commission_payable} $total->{money}[0]{fee_payable}", '8 432.00 86.40', 'and the shop\'s');
    is("$total->{clicks}{gross}", scalar(my @all = $manager->pages("$m/clicks?limit=200")), 'whose clicks are those of the list');
    for my $by (qw(day campaign affiliate link product)) {
        my $csv = $manager->get("$m/reports/$by?format=csv")->{body};
        is(scalar(() = $csv =~ /\r\n/g) - 1, scalar($manager->pages("$m/reports/$by")), "by $by, as JSON and as CSV");
    }
    is(problem($manager->get("$m/reports/sub_id?affiliate=$asha_id")), 200, 'by sub-id');
    refused($manager->get("$m/reports/weather"), '404 not_found', 'a report that is none');
    is($admin->get('/admin/reports/merchant')->{json}{data}[0]{merchant_name}, 'Himal Shop', 'the network\'s report');
    is(problem($asha->get('/affiliate/clicks?limit=2')), 200, 'her clicks');
    my ($statement) = $asha->pages("/affiliate/statements/$month");
    is("$statement->{currency} $statement->{accounts}{payable}{closing}", 'NPR 432.00', 'her statement');
    ok(scalar($asha->pages("/affiliate/statements/$month/lines")), 'line by line');
    ok(scalar($manager->pages("$m/statements/$month")) && scalar($manager->pages("$m/statements/$month/lines")), 'and the shop\'s');
    is(problem($manager->get("$m/owed")), 200, 'what the shop owes');
    is(scalar($admin->pages("/admin/orders?merchant=$shop")), 8, 'the admin sees all orders');
}
($code, $out) = $t->cli('audit');
is($code, 0, 'and the books are right') or diag($out);

# --- money out -------------------------------------------------------------------------------------------------------------------

{
    my ($p, $batches) = ('/affiliate/payouts', '/admin/payout-batches');
    my $ask = sub { return $asha->post($p, { amount => $_[0], currency => 'NPR' }) };
    $t->write($t->path('password'), "another admin's pass phrase\n");
    $t->cli(qw(user create --email second@network.example --name Second --admin true --password-file), $t->path('password'));
    my $second = $t->client;
    is(problem($second->login('second@network.example', 'another admin\'s pass phrase')), 201, 'a second reviewer');

    refused($ask->('200'), '409 cool_off', 'to an account that is three days new');
    $t->psql(q{update affiliate.payout_policy set cool_off = '0', minimum_minor = 10000});
    refused($ask->('99.99'), '422 invalid_field', 'below the minimum');
    refused($ask->('432.01'), '422 invalid_field', 'more than is payable');
    is($asha->put('/affiliate/tax-profile', { pan => '301234567', vat_registered => JSON::PP::false })->{json}{pan}, '301234567', 'her PAN');
    is($asha->get('/affiliate/tax-profile')->{json}{vat_registered}, JSON::PP::false, 'no VAT');
    my $payout = $ask->('200')->{json}{payout};
    like(letter('asha@rai.example', qr/You asked for 200\.00 NPR/)->{text}, qr/If it was not you/, 'which a letter tells her');
    is($asha->post("$p/$payout/cancel")->{json}{state}, 'cancelled', 'taken back');
    $payout = $ask->('150')->{json}{payout};
    is($admin->post("/admin/payouts/$payout/reject", { reason => 'Whose account is it?' })->{json}{state}, 'rejected', 'rejected');
    like(letter('asha@rai.example', qr/was rejected/)->{text}, qr/Whose account is it\?/, 'with a reason');

    my $batch = sub {
        my $b = $admin->post($batches, { kind => 'bank', currency => 'NPR' })->{json};
        return ("$batches/$b->{batch}", $b);
    };
    my $send = sub {
        my ($path) = @_;
        is($admin->post("$path/propose")->{json}{state}, 'proposed', 'a batch is proposed');
        refused($admin->post("$path/approve"), '403 second_person', 'by whoever made it');
        is($second->post("$path/approve")->{json}{state}, 'approved', 'and approved by the second person');
        is($admin->post("$path/export")->{json}{state}, 'processing', 'its file is made');
    };
    $payout = $ask->('200')->{json}{payout};
    my ($path, $b) = $batch->();
    is($admin->post("$path/remove", { payout => $payout })->{json}{items}, 0, 'taken out of a batch');
    is($admin->post("$path/reject", { reason => 'Nothing in it' })->{json}{state}, 'rejected', 'which is given up');
    ($path, $b) = $batch->();
    is("$b->{amount} $b->{tax} $b->{net}", '200.00 30.00 170.00', '15 % are withheld');
    $send->($path);
    like($admin->get("$path/file")->{body}, qr/^AP$payout,Nabil,,0123456789,Asha Rai,170\.00,NPR,/m, 'a line for the bank');
    my $answer = sub { return $admin->post("$path/results", undef, raw => "Reference,Amount,Status,Transaction Id\r\n$_[0]", type => 'text/csv') };
    refused($answer->("AP$payout,200.00,PAID,B1\r\n"), '409 result_amounts', 'an answer about another amount');
    is($answer->("AP$payout,170.00,IN CLEARING,\r\n")->{json}{unknown}, 1, 'an answer that says neither');
    is($asha->get("$p/$payout")->{json}{state}, 'unknown', 'nobody knows, and nothing is sent again');
    is($second->post("/admin/payouts/$payout/resolve", { outcome => 'failed', reason => 'The bank sent it back.' })->{json}{state}, 'failed', 'a person finds out');
    $payout = $ask->('232')->{json}{payout};
    ($path) = $batch->();
    $send->($path);
    my $said = $answer->("AP$payout,197.20,Success,B2\r\nTOTAL 1,197.20,,\r\n")->{json};
    is($said->{paid}, 1, 'paid');
    is(join(' ', map { $_->{verdict} } $admin->pages("$path/results/$said->{result}/rows")), 'paid', 'line by line');
    is(scalar($admin->pages("$path/results")), 1, 'answers are kept');
    is($second->post("/admin/payouts/$payout/recall", { reason => 'The account is closed.' })->{json}{state}, 'recalled', 'it comes back');
    is(($asha->pages('/affiliate/wallet'))[0]{payable}, '432.00', 'and all of it is payable');
    $payout = $ask->('432')->{json}{payout};
    ($path) = $batch->();
    $send->($path);
    $answer->("AP$payout,367.20,Success,B3\r\n");
    is($admin->get($path)->{json}{state}, 'settled', 'the batch is settled');
    is(join(' ', @{ ($asha->pages('/affiliate/wallet'))[0] }{qw(payable in_payout paid)}), '0.00 0.00 367.20', 'now she is paid');
    like(letter('asha@rai.example', qr/367\.20 NPR were paid/)->{text}, qr/64\.80 of tax/, 'which a letter tells her');
    is(join(' ', map { "$_->{affiliate_name} $_->{pan} $_->{tax}" } grep { $_->{state} eq 'paid' } $admin->pages("/admin/tax-register?month=$month")), 'Asha reviews 301234567 64.80', 'the tax of the month');
    is(scalar($asha->pages($p)), 5, 'her payouts');
    is(scalar($admin->pages("/admin/payouts?affiliate=$asha_id&state=paid")), 1, 'and the network\'s');
    is(scalar($admin->pages("$batches?kind=bank")), 4, 'batches');
    is($admin->get("/admin/payouts/$payout")->{json}{draws}[0]{merchant}, $shop, 'whose money it was');
    is($admin->patch('/admin/rail-maps/bank', { totals => JSON::PP::false })->{json}{totals}, JSON::PP::false, 'what a bank\'s file looks like');
    is(scalar($admin->pages('/admin/rail-maps')), 5, 'rail by rail');

    # The shop's bills: of test orders at once, of live ones after the month.
    my $test = '?livemode=false';
    is(problem($admin->patch('/admin/bill-policy', { seller_name => 'The Network Pvt Ltd', seller_address => 'Kathmandu' })), 200, 'who sends bills');
    is($admin->get('/admin/bill-policy')->{json}{seller_address}, 'Kathmandu', 'is shown');
    refused($manager->post("$m/bills", { currency => 'NPR' }), '403 test_mode_only', 'live bills are made by themselves');
    my $bill = $manager->post("$m/bills$test", { currency => 'NPR' })->{json};
    is("$bill->{total} $bill->{state}", '0.00 paid', 'a bill of the test order, and of its refund');
    like($manager->get("$m/bills/$bill->{bill}/print$test")->{body}, qr/Invoice \(test\).*Himal Pvt Ltd.*T-1/s, 'to print');
    $t->psql(<<'END');
set session_replication_role = replica;
update affiliate.transfer set created_at = created_at - interval '65 days' where livemode and cause_kind in (1, 2);
update affiliate.account set created_at = created_at - interval '65 days' where livemode and kind = 'owed';
END
    $t->wait_until('two months later, a bill', sub { ($bill) = $owner->pages("$m/bills") });
    is("$bill->{commission} $bill->{fee} $bill->{total} $bill->{state}", '432.00 86.40 518.40 issued', 'of what stuck, and the network\'s fee');
    like(letter('maya@himal.example', qr/Bill INV-/)->{text}, qr/518\.40 NPR/, 'which a letter tells');
    my %lines = map { $_->{order} => $_->{commission} } $owner->pages("$m/bills/$bill->{bill}/lines");
    is($lines{stuck}, '120.00', 'order by order');
    like($owner->get("$m/bills/$bill->{bill}/print")->{body}, qr/Invoice INV-.*The Network Pvt Ltd.*518\.40 NPR.*by-hand/s, 'to print');
    my %paid = (currency => 'NPR', paid_on => $t->value('select current_date'), method => 'cheque');
    my $payment = $admin->post("/admin$m/bill-payments", { amount => '518.40', %paid })->{json}{payment};
    is($owner->get("$m/bills/$bill->{bill}")->{json}{state}, 'paid', 'paid');
    is(problem($admin->post("/admin$m/bill-payments/$payment/reverse", { reason => 'The cheque bounced.' })), 200, 'not after all');
    is(($admin->pages('/admin/bills?state=issued'))[0]{number}, $bill->{number}, 'it is open again');
    is($admin->post("/admin$m/bill-payments", { amount => '518.40', %paid, method => 'bank transfer' })->{status}, 201, 'then it is');
    is(scalar($owner->pages("$m/bill-payments")), 2, 'payments');

    # What was paid and is refunded then is taken off what comes next.
    is(problem($manager->post("$m/orders/by-hand/return", { reason => $reason })), 200, 'an order comes back that was paid for');
    $t->wait_until('below zero', sub { ($asha->pages('/affiliate/wallet'))[0]{payable} eq '-120.00' });
    is(($asha->pages('/affiliate/wallet'))[0]{payable}, '-120.00', 'she is below zero');
    refused($ask->('100'), '422 invalid_field', 'nothing is paid then');
}
($code, $out) = $t->cli('audit');
is($code, 0, 'and the books are right') or diag($out);

# --- fraud review ----------------------------------------------------------------------------------------------------------------

# Two affiliates with one account: a case about each, in shadow, so that nothing follows before a person has looked.
{
    my $rule = '/admin/fraud-rules/duplicate_destination';
    is(scalar($admin->pages('/admin/fraud-rules')), 7, 'rules');
    is($admin->get($rule)->{json}{shadow}, JSON::PP::true, 'in shadow');
    is(problem($manager->post('/affiliate/payout-methods', { kind => 'bank', holder => 'Books', account => '0123456789', bank => 'Nabil' })), 201, 'the same account');
    my @cases;
    $t->wait_until('cases', sub { @cases = $admin->pages('/admin/fraud-cases?state=open&rule=duplicate_destination'); return @cases == 2 });
    is($admin->get("/admin/fraud-cases/$cases[0]{case}")->{json}{rule}, 'duplicate_destination', 'a case');
    is(problem($admin->get("$rule/preview?days=30")), 200, 'what it would have held');
    is($admin->post("/admin/fraud-cases/$cases[0]{case}/dismiss", { reason => 'A family' })->{json}{state}, 'dismissed', 'one is dismissed');
    is($admin->post("/admin/fraud-cases/$cases[1]{case}/confirm", { reason => 'One person' })->{json}{state}, 'confirmed', 'one is confirmed');
    is($admin->patch($rule, { active => JSON::PP::false, reason => 'Families' })->{json}{version}, 2, 'the rule rests');
}

# --- suspension, and the end ---------------------------------------------------------------------------------------------------

for (["/admin$m", $link->{short_url}], ["/admin/affiliates/$asha_id", $link->{short_url}]) {
    my ($whom, $path) = @$_;
    refused($admin->post("$whom/suspend", {}), '422 invalid_field', 'a suspension without a reason');
    is(problem($admin->post("$whom/suspend", { reason => 'Complaints' })), 200, 'suspended');
    ok($t->wait_until('links stop', sub { $t->get($path)->{status} != 302 }), 'links stop');
    is(problem($admin->post("$whom/activate", {})), 200, 'active again');
    ok($t->wait_until('links lead', sub { $t->get($path)->{status} == 302 }), 'links lead');
}
is(problem($admin->post("/admin/campaigns/$campaign/suspend", { reason => 'Look' })), 200, 'a campaign is suspended');
is(problem($admin->post("/admin/campaigns/$campaign/resume")), 200, 'and goes on');
my $user = $reader->get('/me')->{json}{user};
is(problem($admin->post("/admin/people/$user/suspend", { reason => 'Left' })), 200, 'a person is suspended');
refused($reader->get('/me'), '401 unauthenticated', 'a person who is suspended');
is(problem($admin->post("/admin/people/$user/activate", {})), 200, 'and comes back');
is(problem($reader->login($reader->{email}, 'a long password')), 201, 'by a new session');
is(problem($reader->delete('/session')), 204, 'which ends');
$reader->login($reader->{email}, 'a long password');
is(problem($owner->delete("$m/members/$user")), 204, 'a member leaves');
is(problem($manager->post("$c/pause")), 200, 'the campaign pauses');
is(problem($asha->delete("/affiliate/links/$random->{link}")), 204, 'a link is removed');
is(problem($asha->delete("/affiliate/memberships/$campaign")), 204, 'she leaves');
is(problem($manager->post("$c/close")), 200, 'the campaign is over');
is(problem($owner->delete("$m/test-links/$test_link->{link}")), 204, 'test links are removed');
is(problem($owner->post("$m/keys/$test_key->{id}/revoke")), 200, 'keys are revoked');
ok(scalar($owner->pages("$m/audit-records?limit=200")) > 20, 'all of which is on record');
ok(scalar($admin->pages('/admin/audit-records?limit=200')) > 40, 'of everybody');

# --- who is told -----------------------------------------------------------------------------------------------------------------

for my $told ([$owner, "$m/webhooks", "$m/webhook-deliveries", 'webhook', 'https://himal.example/hooks'],
    [$asha, '/affiliate/postbacks', '/affiliate/postback-deliveries', 'postback', 'https://asha.example/p?s={sub1}&c={commission}'])
{
    my ($who, $list, $deliveries, $kind, $url) = @$told;
    my $made = $who->post($list, { url => $url, types => ['order.approved'] });
    is(problem($made), 201, "a $kind");
    my $at = "$list/$made->{json}{$kind}";
    is(problem($who->get($list)), 200, 'in their list');
    is(problem($who->get($at)), 200, 'by itself');
    is(problem($who->patch($at, { types => ['order.approved', 'order.cancelled'] })), 200, 'changed');
    is(problem($who->post("$at/rotate")), 200, 'another secret') if $kind eq 'webhook';
    my $ping = $who->post("$at/ping");
    is(problem($ping), 202, 'a test event');
    is(problem($who->get($deliveries)), 200, 'in the list of what is sent');
    is(problem($who->get("$deliveries/$ping->{json}{delivery}")), 200, 'by itself');
    is(problem($who->post("$deliveries/$ping->{json}{delivery}/resend")), 202, 'again');
    is(problem($who->delete($at)), 204, 'removed');
}

# --- every operation -----------------------------------------------------------------------------------------------------------

# What else there is to look at.
is(problem($_->[0]->get($_->[1])), 200, "GET $_->[1]")
    for [$nobody, '/health'], [$nobody, '/time'], [$owner, '/session'], [$owner, '/merchants'], [$owner, $m], [$owner, "$m/members"], [$owner, "$m/campaigns"],
    [$owner, $c], [$owner, "$c/terms"], [$owner, "$c/creatives"], [$owner, "$c/affiliates"], [$owner, "$m/categories"], [$owner, "$m/products"], [$owner, "$m/products/CUP"],
    [$owner, "$m/imports"], [$owner, "$m/imports/" . ($owner->pages("$m/imports"))[0]{import}], [$owner, "$m/keys"], [$owner, "$m/keys/$key->{id}"],
    [$owner, "$m/test-clock"], [$owner, "$m/orders"], [$owner, "$m/network-fee"], [$asha, '/affiliate'], [$asha, '/affiliate/links'], [$asha, "/affiliate/links/$link->{link}"],
    [$asha, '/affiliate/memberships'], [$asha, '/affiliate/payout-methods'], [$admin, '/admin/merchants'], [$admin, "/admin$m"], [$admin, '/admin/affiliates'],
    [$admin, "/admin/affiliates/$asha_id"], [$admin, '/admin/campaigns'], [$admin, '/admin/people'], [$admin, "/admin/people/$user"];

my (%allowed, $path, $method);
for (split /\n/, $t->slurp("$Affiliated::Test::TOP/api/openapi.yaml")) {
    last if /^components:/;
    $path = $1 if m{^  (/\S*):$};
    $method = uc $1 if /^    (get|post|put|patch|delete):$/;
    $allowed{"$method $path"}{takes} = m{text/csv} ? 'csv' : 'json' if m{^      requestBody:|^          text/csv:};
    $allowed{"$method $path"}{name} = $1 if /^      operationId: (\w+)$/;
    $allowed{"$method $path"}{actors} = $1 if /^      x-actors: \[(.*)\]$/;
}
my %done = map { $_ => 1 } map { /\b(?:GET|POST|PUT|PATCH|DELETE) (\w+) 2\d\d / ? $1 : () } split /\n/, $t->daemon_log;
cmp_ok(scalar(keys %allowed), '>', 130, 'operations are found in the description');
is(join(' ', sort grep { !$done{$_} } map { $_->{name} } values %allowed), '', 'each has succeeded for somebody');

my %who = (nobody => $nobody, person => $reader, affiliate => $asha, merchant => $owner);
# What is looked at before who asks.
my %fields = (dry_run_create => '{"body":"{}"}', signature_check => qq({"key":"$key->{id}","body":"{}"}), key_create => '{"livemode":false}');
my $tried = 0;
for my $operation (sort keys %allowed) {
    my ($method, $path) = split / /, $operation;
    my %may = map { $_ => 1 } split /, /, $allowed{$operation}{actors};
    my $takes = $allowed{$operation}{takes};
    # Whatever is named is of somebody who is none of them.
    $path =~ s/\{(\w+)\}/$1 eq 'by' ? 'day' : $1 eq 'month' ? $month : 999/ge;

    for my $who (sort keys %who) {
        next if $may{$who} || $may{nobody} || $may{person} && $who ne 'nobody';
        next if $who eq 'nobody' && $operation =~ m{ /session$};
        my $r = $who{$who}->call($method, $path, undef, !$takes ? () : $takes eq 'csv' ? (raw => "a,b\r\n", type => 'text/csv')
            : (raw => $fields{$allowed{$operation}{name}} || '{}', type => 'application/json'));
        my $expected = $who eq 'nobody' ? qr/^401 / : qr/^(?:403|404) /;
        like(problem($r), $expected, "$operation refuses $who") unless problem($r) =~ $expected;
        $tried++;
    }
}
cmp_ok($tried, '>', 300, 'who may not call an operation is refused');

done_testing();
