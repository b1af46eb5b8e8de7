# Logging in: passwords, codes, sessions, CSRF, and that nothing tells who exists.

use Affiliated::Api;

my $t = Affiliated::Api->new;

$t->api_start;

my $right = { %{ $t->person(email => 'asha@example.com', name => 'Asha', login => 0) } };
my $nobody = $t->client;

# --- in and out ----------------------------------------------------------------------------------------------------------------

my $asha = $t->client;
{
    my $r = $asha->login('Asha@Example.com', $t->{password});
    is(problem($r), 201, 'a login, whatever the case of the address') or diag $r->{raw};
    my ($cookie) = map { $_->[1] } grep { lc $_->[0] eq 'set-cookie' } @{ $r->{lines} };
    like($cookie, qr/^__Host-affiliate=[A-Za-z0-9_-]{43}; Path=\/; Secure; HttpOnly; SameSite=Lax$/, 'the cookie');
    is($r->{json}{email}, 'asha@example.com', 'who it is');

    $r = $asha->get('/session');
    is($r->{json}{csrf}, $asha->{csrf}, 'the session tells its CSRF token again');
    is($asha->get('/me')->{json}{name}, 'Asha', 'me');
    ok(!$t->value("select count(*) from affiliate.session where token_hash = '$asha->{cookie}' or csrf_hash = '$asha->{csrf}'"),
        'the tables have neither token');
}

# --- what is wrong is one answer -------------------------------------------------------------------------------------------------

my @wrong = map { $_->{raw} =~ s/[0-9a-f]{8}-[0-9a-f-]{27}|[0-9a-f]{32}|^(?:Date|RateLimit):.*$//gmr } (
    $nobody->login('asha@example.com', 'wrong horse battery'),
    $nobody->login('nobody@example.com', 'wrong horse battery'),
    $nobody->login('no address', 'wrong horse battery'));
like($wrong[0], qr/401.*invalid_credentials/s, 'a wrong password');
is($wrong[1], $wrong[0], 'somebody who does not exist is answered the same');
is($wrong[2], $wrong[0], 'so is what is no address');

# --- CSRF, ETags -------------------------------------------------------------------------------------------------------------------

is(problem($asha->patch('/me', { name => 'Asha Rai' }, csrf => undef)), '403 csrf', 'a change without the CSRF token');
is(problem($asha->patch('/me', { name => 'Asha Rai' }, csrf => 'x' x 43)), '403 csrf', 'with another');
{
    my $r = $asha->patch('/me', { name => 'Asha Rai' });
    is($r->{json}{name}, 'Asha Rai', 'with it');
    my $tag = $asha->get('/me')->{headers}{etag};
    is($tag, qq("$r->{json}{version}"), 'the ETag is the version');
    is($asha->get('/me', undef, headers => [['If-None-Match', $tag]])->{status}, 304, 'nothing has changed');
    is($asha->patch('/me', { name => 'Asha' }, headers => [['If-Match', $tag]])->{status}, 200, 'a change of what was seen');
    is(problem($asha->patch('/me', { name => 'A' }, headers => [['If-Match', $tag]])), '412 precondition_failed', 'of what was not');
    $r = $asha->patch('/me', { name => '', nothing => 1 });
    is(problem($r), '422 invalid_field', 'wrong fields');
    ok(scalar(grep { $_->{pointer} eq '/nothing' } @{ $r->{json}{errors} }), 'each is named');
}

# --- sessions ----------------------------------------------------------------------------------------------------------------------

{
    my $other = $t->client;
    $other->login('asha@example.com', $t->{password});
    $t->client->login('asha@example.com', $t->{password}) for 1 .. 3;
    my @sessions = $asha->pages('/sessions?limit=2');
    is(scalar @sessions, 5, 'five sessions, in pages of two');
    my $r = $asha->get('/sessions?limit=2');
    my ($link) = ($r->{headers}{link} // '') =~ /^<([^>]+)>; rel="next"$/;
    is_deeply($asha->get($link)->{json}{data}, [@sessions[2, 3]], 'the header Link leads to the next page');
    is(scalar(grep { $_->{current} } @sessions), 1, 'one is this');

    $r = $asha->get('/sessions', undef, headers => [['Accept', 'text/csv']]);
    is(scalar(split /\r\n/, $r->{body}), 6, 'all as CSV, with a header');
    like($r->{headers}{'content-type'}, qr{^text/csv; charset=utf-8}, 'which it says');
    like($r->{headers}{'content-disposition'}, qr/filename="session_list\.csv"/, 'and what to call it');

    my $mine = $other->get('/session')->{json}{session};
    is($asha->delete("/sessions/$mine")->{status}, 204, 'one is revoked');
    is(problem($other->get('/me')), '401 unauthenticated', 'and is none any more');
    is(problem($asha->delete("/sessions/$mine")), '404 not_found', 'not twice');
    is(problem($asha->delete('/sessions/x')), '404 not_found', 'what can be none');

    my $bikram = $t->person;
    my ($theirs) = grep { $_->{current} } @{ $asha->get('/sessions')->{json}{data} };
    is(problem($bikram->delete("/sessions/$theirs->{session}")), '404 not_found', 'nobody revokes the sessions of others');
}

# --- passwords ---------------------------------------------------------------------------------------------------------------------

{
    my $other = $t->client;
    $other->login('asha@example.com', $t->{password});
    my %before = %$asha;
    is(problem($asha->put('/me/password', { current_password => 'wrong horse battery', password => 'a new password' })),
        '422 invalid_field', 'not without the password');
    is(problem($asha->put('/me/password', { current_password => $t->{password}, password => 'short' })), '422 invalid_field', 'a short one');
    is($asha->put('/me/password', { current_password => $t->{password}, password => 'a new password' })->{status}, 200, 'a new one');
    isnt($asha->{cookie}, $before{cookie}, 'the session has another cookie');
    isnt($asha->{csrf}, $before{csrf}, 'and another CSRF token');
    is($asha->get('/me')->{status}, 200, 'and goes on');
    is($asha->patch('/me', { name => 'Asha' })->{status}, 200, 'also with changes');
    is(problem($other->get('/me')), '401 unauthenticated', 'others do not');
    my $old = $t->client;
    $old->{cookie} = $before{cookie};
    is(problem($old->get('/me')), '401 unauthenticated', 'nor does the old cookie');
    is(problem($nobody->login('asha@example.com', $t->{password})), '401 invalid_credentials', 'the old password is none');
    is($asha->put('/me/password', { current_password => 'a new password', password => $t->{password} })->{status}, 200, 'back');
}

# --- codes -----------------------------------------------------------------------------------------------------------------------------

sub code
{
    my ($secret, $step) = @_;
    my $bits = join '', map { sprintf '%05b', index 'ABCDEFGHIJKLMNOPQRSTUVWXYZ234567', $_ } split //, $secret;
    my $mac = Digest::SHA::hmac_sha1(pack('Q>', $step), pack 'B*', $bits);
    my $offset = ord(substr $mac, -1) & 15;
    return sprintf '%06d', (unpack('N', substr $mac, $offset, 4) & 0x7fffffff) % 1_000_000;
}

{
    my $key = 'totp-1';
    is(problem($asha->post('/me/totp', { current_password => 'wrong horse battery' })), '422 invalid_field', 'a secret not without the password');
    my $r = $asha->post('/me/totp', { current_password => $t->{password} }, key => $key);
    is(problem($r), 201, 'a secret') or diag $r->{raw};
    my $secret = $r->{json}{secret};
    like($r->{json}{uri}, qr/secret=$secret/, 'also as a QR code\'s text');
    my $again = $asha->post('/me/totp', { current_password => $t->{password} }, key => $key);
    is_deeply($again->{json}, $r->{json}, 'asked again, the same');
    is($again->{headers}{'idempotent-replayed'}, 'true', 'as an answer that was given');
    unlike($t->psql('select * from affiliate.api_answer'), qr/$secret/, 'which is not kept in the plain');

    is($nobody->login('asha@example.com', $t->{password})->{status}, 201, 'it does not count before it is confirmed');
    my $wrong = sprintf '%06d', (code($secret, int(time / 30)) + 1) % 1_000_000;
    is(problem($asha->put('/me/totp', { code => $wrong })), '422 invalid_field', 'a wrong code');
    my $step = int(time / 30);
    $r = $asha->put('/me/totp', { code => code($secret, $step) });
    is(problem($r), 200, 'a right one') or diag $r->{raw};
    my @codes = @{ $r->{json}{recovery_codes} };
    is(scalar @codes, 10, 'recovery codes');

    is(problem($nobody->login('asha@example.com', $t->{password})), '401 totp_required', 'from now on a login needs one');
    is(problem($nobody->login('asha@example.com', 'wrong horse battery')), '401 invalid_credentials', 'which only who knows the password learns');
    is(problem($nobody->login('asha@example.com', $t->{password}, totp => code($secret, $step))), '401 invalid_credentials', 'the code that confirmed is used');
    is(problem($nobody->login('asha@example.com', $t->{password}, totp => code($secret, $step + 1))), 201, 'the next one');
    is(problem($nobody->login('asha@example.com', $t->{password}, totp => code($secret, $step + 1))), '401 invalid_credentials', 'once');
    is(problem($nobody->login('asha@example.com', $t->{password}, recovery_code => uc $codes[3])), 201, 'a recovery code');
    is(problem($nobody->login('asha@example.com', $t->{password}, recovery_code => $codes[3])), '401 invalid_credentials', 'once');
    is($asha->get('/me')->{json}{recovery_codes}, 9, 'nine are left');

    $r = $asha->post('/me/recovery-codes', { current_password => $t->{password} });
    is(problem($r), 201, 'new ones') or diag $r->{raw};
    is(problem($nobody->login('asha@example.com', $t->{password}, recovery_code => $codes[4])), '401 invalid_credentials', 'the others are none any more');
    is(problem($nobody->login('asha@example.com', $t->{password}, recovery_code => $r->{json}{recovery_codes}[0])), 201, 'these are');
    is($asha->delete('/me/totp', { current_password => $t->{password} })->{status}, 204, 'no codes any more');
    is($nobody->login('asha@example.com', $t->{password})->{status}, 201, 'it is done without');
}

# --- lockout -----------------------------------------------------------------------------------------------------------------------------

for my $email ('asha@example.com', 'nobody-at-all@example.com') {
    my ($r, $n);
    for (1 .. 30) {
        $r = $nobody->login($email, 'wrong horse battery');
        $n++;
        last if $r->{status} == 429;
    }
    is(problem($r), '429 too_many_attempts', "$email is locked after $n attempts, whether somebody has it or not");
    cmp_ok($r->{headers}{'retry-after'}, '>', 0, 'and says for how long');
}
is(problem($nobody->login('asha@example.com', $t->{password})), '429 too_many_attempts', 'the right password does not help then');

# --- out -------------------------------------------------------------------------------------------------------------------------------

{
    my $cookie = $asha->{cookie};
    my $r = $asha->delete('/session');
    is($r->{status}, 204, 'a logout');
    like(join("\n", map { "@$_" } @{ $r->{lines} }), qr/__Host-affiliate=;.*Max-Age=0/, 'the cookie goes');
    $asha->{cookie} = $cookie;
    is(problem($asha->get('/me')), '401 unauthenticated', 'and so did the session');
}

unlike($t->daemon_log, qr/horse|new password/, 'the log has no password');
unlike($t->daemon_log, qr/ 500 |internal_error/, 'nothing broke');

done_testing();
