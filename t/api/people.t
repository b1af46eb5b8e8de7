# People over HTTP: from registration to approval, as an affiliate, a merchant with members, and an admin.

use Affiliated::Api;

use Digest::SHA ();
use MIME::Base64 ();

my $t = Affiliated::Api->new;

$t->redis_start;
$t->api_start;
my $admin = $t->person(admin => 1, name => 'Admin');
my $nobody = $t->client;

# What the newest mail of a kind says, and the token that goes with it (worker/token.h).
sub mail
{
    my ($template, $to) = @_;
    return $t->value("select jsonb_build_object('user', n.user_id, 'data', n.data) from affiliate.notice n left join affiliate.person p using (user_id) "
            . "where n.template = '$template' and coalesce(n.data ->> 'to', p.email) = '$to' order by n.notice_id desc limit 1");
}

sub token
{
    my ($purpose, $template, $to) = @_;
    my $mail = JSON::PP::decode_json(mail($template, $to));
    my $bytes = pack 'q< q< H*', $mail->{user}, $mail->{data}{expires}, $mail->{data}{nonce};
    my ($hex) = $t->slurp($t->{keys}) =~ /^\S+ (\S+)/;
    my $key = Digest::SHA::hmac_sha256("mail_token\1", Digest::SHA::hmac_sha256(pack('H*', $hex), "\0" x 32));
    my $mac = substr Digest::SHA::hmac_sha256(pack('a16', $purpose) . $bytes, $key), 0, 16;
    return MIME::Base64::encode_base64url($bytes . $mac);
}

# --- an affiliate ------------------------------------------------------------------------------------------------------------------------

my %form = (email => 'asha@example.com', name => 'Asha Rai', password => 'a long password', display_name => 'Asha reviews', country => 'NP',
    channels => [{ kind => 'youtube', url => 'https://youtube.example/asha', audience => 5000 }], methods => ['reviews', 'video']);
is(problem($nobody->post('/registrations/affiliate', \%form)), 202, 'registered');
is(problem($nobody->post('/registrations/affiliate', { %form, password => 'short' })), '422 invalid_field', 'a short password');
{
    my $r = $nobody->post('/registrations/affiliate', { %form, channels => [{ kind => 'fax', url => 'x' }], colour => 'red' });
    is(join(' ', map { $_->{pointer} } @{ $r->{json}{errors} }), '/colour', 'a field that is none');
}
my $asha = $t->client;
is(problem($asha->login('asha@example.com', 'a long password')), '403 email_unverified', 'the mail goes first');
is(problem($asha->login('asha@example.com', 'another password')), '401 invalid_credentials', 'which only who knows the password is told');
my $token = token('verify', 'verify_email', 'asha@example.com');
is(problem($nobody->post('/email-verifications', { token => $token =~ s/.$/$& eq 'A' ? 'B' : 'A'/er })), '404 token_invalid', 'a token that is bent');
is(problem($nobody->put("/password-resets/$token", { password => 'thief of passwords' })), '404 token_invalid', 'or for something else');
is_deeply($nobody->post('/email-verifications', { token => $token })->{json}, { email => 'asha@example.com', verified => JSON::PP::true }, 'the address is proven');
is(problem($nobody->post('/email-verifications', { token => $token })), '404 token_invalid', 'once');
is(problem($asha->login('asha@example.com', 'a long password')), 201, 'now she is in');
{
    my $r = $asha->get('/affiliate');
    is($r->{json}{state}, 'submitted', 'her application');
    is($r->{json}{channels}[0]{audience}, 5000, 'with what she said');
    is(problem($asha->patch('/affiliate', { country => 'Nepal' })), '422 invalid_field', 'a wrong country');
    is($asha->patch('/affiliate', { phone => '+977 9841234567', country => undef }, headers => [['If-Match', $r->{headers}{etag}]])->{json}{country}, undef,
        'a field is taken away');
    is(problem($asha->patch('/affiliate', { phone => undef }, headers => [['If-Match', $r->{headers}{etag}]])), '412 precondition_failed', 'of a version that is over');
}
my @first = map { $_->{raw} =~ s/[0-9a-f]{8}-[0-9a-f-]{27}|[0-9a-f]{32}|^(?:Date|RateLimit).*$//gmr }
    map { $nobody->post('/registrations/affiliate', { %form, email => $_ }) } 'Asha@example.com', 'ashb@example.com';
is($first[0] =~ s/Asha/Ashb/ir, $first[1] =~ s/ashb/Ashb/r, 'whether an address is somebody\'s makes no difference to who asks');
isnt(mail('already_registered', 'asha@example.com'), '', 'but is mailed to who has it');

my $id = $asha->get('/affiliate')->{json}{affiliate};
is(problem($asha->post("/admin/affiliates/$id/approve", {})), '403 forbidden', 'she does not approve herself');
is(problem($admin->post("/admin/affiliates/$id/reject", {})), '422 invalid_field', 'a rejection takes a reason');
is($admin->post("/admin/affiliates/$id/reject", { reason => 'Which videos?' })->{json}{state}, 'rejected', 'rejected');
is($asha->get('/affiliate')->{json}{decision_reason}, 'Which videos?', 'which she sees');
is(problem($asha->post('/affiliate/payout-methods', { kind => 'esewa', holder => 'Asha Rai', account => '9841234567' })), '403 rejected', 'and does little else');
is($asha->post('/affiliate/submit')->{json}{state}, 'submitted', 'but asks again');
is(problem($admin->post("/admin/affiliates/$id/suspend", { reason => 'x' })), '409 state', 'who is not approved is not suspended');
is($admin->post("/admin/affiliates/$id/approve", {})->{json}{state}, 'approved', 'approved');
like(mail('affiliate_approve', 'asha@example.com'), qr/Asha reviews/, 'by mail, too');
is_deeply([map { $_->{affiliate} } $admin->pages('/admin/affiliates?state=approved&limit=1')], [$id], 'the admin\'s list');

{
    my $r = $asha->post('/affiliate/payout-methods', { kind => 'esewa', holder => 'Asha Rai', account => '9841234567' });
    is($r->{json}{account}, '******4567', 'a payout method, of which little is shown');
    ok($r->{json}{default}, 'the first is the default');
    is(problem($asha->post('/affiliate/payout-methods', { kind => 'esewa', holder => 'Asha', account => '123' })), '422 invalid_field', 'no number');
    is(problem($asha->post('/affiliate/payout-methods', { kind => 'bank', holder => 'Asha', account => '0123456' })), '422 invalid_field', 'no bank');
    my $bank = $asha->post('/affiliate/payout-methods', { kind => 'bank', holder => 'Asha', account => '0123456', bank => 'Nabil' })->{json};
    ok($asha->post("/affiliate/payout-methods/$bank->{payout_method}/default")->{json}{default}, 'another becomes it');
    is(join(' ', map { $_->{default} ? 'yes' : 'no' } $asha->pages('/affiliate/payout-methods')), 'no yes', 'and is the only one');
    is($asha->delete("/affiliate/payout-methods/$r->{json}{payout_method}")->{status}, 204, 'removed');
    is(problem($asha->delete("/affiliate/payout-methods/$r->{json}{payout_method}")), '404 not_found', 'is gone');
    unlike($t->value('select string_agg(a::text, chr(10)) from affiliate.audit_record a'), qr/9841234567|0123456\b/, 'no record has an account');
}

# --- a merchant and its members ---------------------------------------------------------------------------------------------------------------

is(problem($nobody->post('/registrations/merchant', { email => 'owner@shop.example', name => 'Owner', password => 'a long password',
    business_name => 'Himal Shop', website => 'https://shop.example/', legal_name => 'Himal Pvt Ltd' })), 202, 'a merchant registers');
$nobody->post('/email-verifications', { token => token('verify', 'verify_email', 'owner@shop.example') });
my $owner = $t->client;
$owner->login('owner@shop.example', 'a long password');
my ($merchant) = $owner->pages('/merchants');
is("$merchant->{state} $merchant->{role} @{ $merchant->{hosts} }", 'submitted owner shop.example', 'and owns what waits');
my $m = "/merchants/$merchant->{merchant}";
is(problem($admin->post("/admin$m/approve", {})), '409 site_unverified', 'its site first');
{
    my ($site) = $owner->pages("$m/site-verifications");
    is("$site->{state} $site->{method} $site->{record_name}", 'pending dns _affiliated.shop.example', 'what has to be put where');
    my $file = $owner->post("$m/site-verifications", { host => 'www.shop.example', method => 'file' })->{json};
    is($file->{file_url}, 'https://www.shop.example/.well-known/affiliated-site.txt', 'or as a file');
    is(problem($owner->post("$m/site-verifications", { host => '10.0.0.1' })), '422 invalid_field', 'an address proves nothing');
    is($t->value('select count(*) from affiliate.site_verification_take(10)'), 2, 'both are looked for');
    is($t->value('select count(*) from affiliate.site_verification_take(10)'), 0, 'by one');
    $t->psql("select affiliate.site_verification_done($merchant->{merchant}, 'www.shop.example', '$file->{file_content}', false, 'HTTP 404')");
    is((grep { $_->{host} =~ /^www/ } $owner->pages("$m/site-verifications"))[0]{detail}, 'HTTP 404', 'not found yet, which is told');
    $t->psql("select affiliate.site_verification_done($merchant->{merchant}, 'www.shop.example', '$file->{file_content}', true, null)");
    is_deeply($owner->get($m)->{json}{hosts}, [qw(shop.example www.shop.example)], 'found: links may lead there');
    is_deeply($owner->patch($m, { hosts => ['www.shop.example'] })->{json}{hosts}, ['www.shop.example'], 'a host is taken away');
    is(problem($owner->patch($m, { hosts => ['evil.example'] })), '422 invalid_field', 'but none added so');
}
is(problem($admin->post("/admin$m/approve", {})), 200, 'approved');
{
    my $r = $owner->post("$m/invitations", { email => 'Helper@shop.example', role => 'manager' });
    is($r->{status}, 201, 'somebody is invited');
    my $helper = $t->client;
    $nobody->post('/registrations/person', { email => 'helper@shop.example', name => 'Helper', password => 'a long password' });
    $nobody->post('/email-verifications', { token => token('verify', 'verify_email', 'helper@shop.example') });
    $helper->login('helper@shop.example', 'a long password');
    my ($invitation) = $helper->pages('/invitations');
    is($invitation->{merchant_name}, 'Himal Shop', 'registers and sees it');
    is(problem($helper->get($m)), '404 not_found', 'is nothing yet');
    is(problem($asha->post("/invitations/$invitation->{invitation}/accept")), '404 not_found', 'nobody else accepts');
    is($helper->post("/invitations/$invitation->{invitation}/accept")->{json}{role}, 'manager', 'accepts');
    is($helper->patch($m, { phone => '+977 1 4000000' })->{status}, 200, 'and acts');
    is(problem($helper->post("$m/invitations", { email => 'x@example.com', role => 'owner' })), '403 forbidden', 'as a manager');
    my $user = $helper->get('/me')->{json}{user};
    is($owner->patch("$m/members/$user", { role => 'read_only' })->{json}{role}, 'read_only', 'has another role');
    is(problem($helper->patch($m, { phone => undef })), '403 forbidden', 'at once');
    is($owner->delete("$m/members/$user")->{status}, 204, 'is taken away');
    is(problem($helper->get($m)), '404 not_found', 'and sees nothing any more');
    my @did = map { "$_->{actor} $_->{action}" } $owner->pages("$m/audit-records?limit=3");
    is_deeply([@did[0 .. 4]], ['merchant member.remove', 'merchant member.update', 'merchant merchant.update', 'person member.join', 'merchant member.invite'],
        'all of which is on record');
    my $csv = $owner->get("$m/audit-records?format=csv&action=member.remove");
    is(scalar(my @lines = split /\r\n/, $csv->{body}), 2, 'also as CSV, as filtered');
}

{
    my $r = $t->person(name => 'Late')->post('/affiliate', { display_name => 'Late Shift', country => 'NP' });
    is("$r->{status} $r->{json}{name} $r->{json}{state}", '201 Late Shift submitted', 'a person who applies as an affiliate gets the profile');
}

# --- suspension acts at once -----------------------------------------------------------------------------------------------------------------

is($admin->post("/admin$m/suspend", { reason => 'complaints' })->{json}{suspension_reason}, 'complaints', 'suspended');
is(problem($owner->post("$m/invitations", { email => 'x@example.com', role => 'owner' })), '403 suspended', 'changes nothing');
is($owner->get($m)->{json}{suspension_reason}, 'complaints', 'but sees why');
is($admin->post("/admin$m/activate", {})->{json}{state}, 'approved', 'active again');
is($admin->post('/admin/people/' . $owner->get('/me')->{json}{user} . '/suspend', { reason => 'left' })->{json}{active}, JSON::PP::false, 'a person is suspended');
is(problem($owner->get($m)), '401 unauthenticated', 'is out');
is(problem($owner->login('owner@shop.example', 'a long password')), '403 suspended', 'and stays so');
is_deeply([map { $_->{email} } $admin->pages('/admin/people?q=SHOP.example')], ['helper@shop.example', 'owner@shop.example'], 'the admin finds people');
is(scalar(grep { $_->{action} eq 'merchant.suspend' } $admin->pages("/admin/audit-records?merchant=$merchant->{merchant}&limit=50")), 1, 'and what was done');

# --- passwords and addresses --------------------------------------------------------------------------------------------------------------------

is(problem($nobody->post('/password-resets', { email => $_ })), 202, "forgotten: $_") for qw(asha@example.com nobody@example.com);
is($nobody->put('/password-resets/' . token('reset', 'password_reset', 'asha@example.com'), { password => 'quite another one' })->{status}, 204, 'set again');
is(problem($asha->get('/me')), '401 unauthenticated', 'all sessions are over');
is(problem($asha->login('asha@example.com', 'a long password')), '401 invalid_credentials', 'the old one is none');
is(problem($asha->login('asha@example.com', 'quite another one')), 201, 'the new one is');
is(problem($asha->put('/me/email', { email => 'rai@example.com', current_password => 'wrong wrong wrong' })), '422 invalid_field', 'another address takes the password');
is(problem($asha->put('/me/email', { email => 'rai@example.com', current_password => 'quite another one' })), 202, 'with it');
$nobody->post('/email-verifications', { token => token('verify', 'verify_email', 'rai@example.com') });
is($asha->get('/me')->{json}{email}, 'rai@example.com', 'and the mail, it changes');

done_testing();
