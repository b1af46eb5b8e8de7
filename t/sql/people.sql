-- People: registering, proving an address, logging in, passwords, codes, members.

\ir support/people.psql

select plan(112);

-- Registering
create temp table form as select jsonb_build_object('email', 'New@people.example', 'name', 'New', '_password', '$scrypt$first',
    'channels', '[{"kind": "youtube", "url": "https://youtube.example/new", "audience": 5000}]'::jsonb, 'methods', '["reviews"]'::jsonb) as f;
select is(pg_temp.call(null, 'registration_affiliate_create', f) - 'rows', '{"head": {"status": 202}}', 'who registers is told to wait for a mail')
  from form;
select is(pg_temp.call(null, 'registration_affiliate_create', f || '{"email": "asha@people.example"}') - 'rows', '{"head": {"status": 202}}',
    'and told the same if the address is somebody''s') from form;
select is(n.template || ' ' || n.user_id, 'already_registered 900105', 'who has it is told') from pg_temp.mail() n;
select is((select count(*) from affiliate.person where email ~* '^(new|asha)@' ), 2::bigint, 'no second account for the address');
select is((select count(*) from affiliate.affiliate where name = 'New'), 0::bigint, 'before the address is proven nothing is applied for');
select is(pg_temp.outcome(null, 'registration_affiliate_create', f || '{"methods": ["spam"]}'),
    '22023 methods: ''spam'' is none of cashback, comparison, content, coupons, email, messaging, other, paid_search, paid_social, reviews, social, video',
    'a form that is wrong is refused at once') from form;
select is(pg_temp.outcome(null, 'registration_affiliate_create', f || '{"channels": [{"kind": "youtube", "url": "javascript:x"}]}'),
    '22023 channels: url: must be an absolute http or https URL without userinfo', 'so is a channel') from form;
select is(pg_temp.outcome(null, 'registration_merchant_create', f || '{"business_name": "B", "website": "https://192.0.2.1/"}'),
    '22023 channels: is not a field of this request', 'and what is no field') from form;
select is(pg_temp.call(null, 'registration_person_create', '{"nmae": 1}') ->> 'fields',
    '{"name": "is required", "nmae": "is not a field of this request", "email": "is required", "_password": "is required"}',
    'all that is wrong is told at once');
select is(pg_temp.outcome(null, 'registration_merchant_create',
    '{"email": "m@people.example", "name": "M", "_password": "$scrypt$m", "business_name": "B", "website": "https://192.0.2.1/"}'),
    '22023 website: must be at a name, like https://shop.example/', 'a site without a name proves nothing');

-- Proving the address
create temp table proof as select pg_temp.token(n) as t, n.user_id from affiliate.notice n where n.template = 'verify_email' order by notice_id desc limit 1;
select is(pg_temp.outcome(null, 'email_verification_create', t || '{"_expires": 1}'), 'AF404 token_invalid', 'a token with another expiry') from proof;
select is(pg_temp.outcome(null, 'email_verification_create', t || '{"_user": 900105}'), 'AF404 token_invalid', 'with another user') from proof;
select is(pg_temp.outcome(null, 'password_reset_update', t || '{"_password": "$scrypt$x"}'), 'AF404 token_invalid', 'for another purpose') from proof;
update affiliate.token set expires_at = expires_at - interval '10 days' where user_id = (select user_id from proof);
select is(pg_temp.outcome(null, 'email_verification_create', t || jsonb_build_object('_expires', (t ->> '_expires')::bigint - 864000)),
    'AF404 token_invalid', 'too late') from proof;
update affiliate.token set expires_at = expires_at + interval '10 days' where user_id = (select user_id from proof);
select is((select c -> 'user_id' from affiliate.login_begin('{"email": "new@PEOPLE.example"}', '{}') c), to_jsonb(user_id),
    'a login finds who has not proven the address, whatever the case of its letters') from proof;
select throws_ok(format($$select affiliate.login_end('{"user_id": %s, "token": "t", "csrf": "c"}', '{}')$$, user_id), 'AF403', null,
    'but does not let him in') from proof;
select is(pg_temp.row(null, 'email_verification_create', t), '{"email": "New@people.example", "verified": true}', 'proven') from proof;
select is(pg_temp.outcome(null, 'email_verification_create', t), 'AF404 token_invalid', 'once only') from proof;
select is((select a.state || ' ' || (p.channels -> 0 ->> 'audience') || ' ' || p.methods::text
             from affiliate.affiliate a join affiliate.affiliate_profile p using (affiliate_id) where a.name = 'New'), 'submitted 5000 {reviews}',
    'now he has applied');

-- Two who register with one address: who follows his mail has it, with his password and no other's.
select pg_temp.call(null, 'registration_person_create', '{"email": "v@people.example", "name": "Thief", "_password": "$scrypt$thief"}') \g /dev/null
select pg_temp.call(null, 'registration_person_create', '{"email": "V@people.example", "name": "Victim", "_password": "$scrypt$victim"}') \g /dev/null
create temp table two as select pg_temp.token(n) as t, n.user_id from affiliate.notice n where n.template = 'verify_email' order by notice_id desc limit 2;
select isnt((select min(user_id) from two), (select max(user_id) from two), 'each has a token of his own');
select is(pg_temp.outcome(null, 'email_verification_create', t), '200', 'the second follows his') from two order by user_id desc limit 1;
select is((select array_agg(password) from affiliate.person where lower(email) = 'v@people.example'), '{$scrypt$victim}', 'his password, and the other is gone');
select is(pg_temp.outcome(null, 'email_verification_create', t), 'AF404 token_invalid', 'and so is the other''s token') from two order by user_id limit 1;
select pg_temp.call(null, 'registration_person_create', format('{"email": "w@people.example", "name": "W%s", "_password": "$scrypt$w"}', n)::jsonb)
  from generate_series(1, 9) n \g /dev/null
select is((select count(*) from affiliate.person where email = 'w@people.example'), 5::bigint, 'a mailbox is not filled by others');
select throws_ok($$insert into affiliate.person (email, name, verified_at) values ('ASHA@people.example', 'x', now())$$, '23505', null,
    'an address is one person''s, whatever the case of its letters');

-- One that the command line made before becomes his who proves the address.
insert into affiliate.affiliate (affiliate_id, name, email) values (900013, 'Old', 'old@people.example');
select pg_temp.call(null, 'registration_affiliate_create', f || '{"email": "OLD@people.example", "name": "Old hand"}') from form \g /dev/null
select pg_temp.call(null, 'email_verification_create', pg_temp.token(n)) from pg_temp.mail() n \g /dev/null
select is((select state || ' ' || (select email from affiliate.person p where p.user_id = a.user_id) from affiliate.affiliate a where affiliate_id = 900013),
    'approved OLD@people.example', 'an affiliate that was there is his, and stays approved');
select pg_temp.call(null, 'registration_merchant_create', '{"email": "m@people.example", "name": "M", "_password": "$scrypt$m", "business_name": "Bazar",
    "website": "https://WWW.bazar.example/x", "country": "NP"}') \g /dev/null
select pg_temp.call(null, 'email_verification_create', pg_temp.token(n)) from pg_temp.mail() n \g /dev/null
select is((select m.state || ' ' || m.hosts::text || ' ' || x.role from affiliate.merchant m join affiliate.member x using (merchant_id) where m.name = 'Bazar'),
    'submitted {www.bazar.example} owner', 'a merchant is applied for, and who did owns it');

-- Logging in
create function pg_temp.begin_login(p_email text) returns jsonb language sql as
$$ select affiliate.login_begin(jsonb_build_object('email', p_email), '{}') $$;
create function pg_temp.end_login(p_fields jsonb) returns text language plpgsql as $$
declare
    head jsonb;
    state text;
    hint text;
begin
    select r into head from affiliate.login_end('{"token": "token-new", "csrf": "csrf-new"}'::jsonb || p_fields, '{"user_agent": "ua"}') r limit 1;
    return head ->> 'status';
exception when others then
    get stacked diagnostics hint = pg_exception_hint;
    return sqlstate || ' ' || hint;
end
$$;
select is(pg_temp.begin_login('ASHA@people.example') - 'totp_step', '{"locked_for": 0, "user_id": 900105, "password": "$scrypt$fixture-asha", "totp": null}',
    'what is needed to check a password');
select is(pg_temp.begin_login('ghost@people.example') - 'totp_step', '{"locked_for": 0, "user_id": null, "password": null, "totp": null}', 'nobody''s address');
select is(array_agg(pg_temp.begin_login('ASHA@people.example') ->> 'locked_for'), '{0,0,0,0}', 'five tries lock nothing') from generate_series(2, 5);
select is(array_agg(pg_temp.begin_login('ghost@people.example') ->> 'locked_for'), '{0,0,0,0}', 'nor for nobody') from generate_series(2, 5);
select is(pg_temp.begin_login('asha@people.example') - 'totp_step', '{"locked_for": 5}', 'then it is locked');
select is(pg_temp.begin_login('ghost@people.example') - 'totp_step', '{"locked_for": 5}', 'as long for an address that nobody has');
update affiliate.login_attempt set locked_until = now() - interval '1 second';
select is(pg_temp.begin_login('asha@people.example') ->> 'locked_for', '0', 'later again');
select is(pg_temp.begin_login('asha@people.example') ->> 'locked_for', '10', 'for twice as long');
update affiliate.login_attempt set failures = 1000, locked_until = null;
select pg_temp.begin_login('asha@people.example') \g /dev/null
select is(pg_temp.begin_login('asha@people.example') ->> 'locked_for', '900', 'never longer than 15 minutes');
select is(pg_temp.begin_login('bikram@people.example') ->> 'locked_for', '0', 'and nobody else');
select is(pg_temp.end_login('{"user_id": 900105}'), '201', 'who is right is in');
select is((select failures from affiliate.login_attempt where email_hash = affiliate.email_hash('asha@people.example')), null, 'and his tries are forgotten');
select is(pg_temp.row('new', 'session_show') - '{session,created_at,last_seen_at,expires_at}'::text[],
    '{"user": 900105, "email": "asha@people.example", "name": "asha", "admin": false, "active": true, "verified": true, "totp": false, "recovery_codes": 0,
      "address": null, "user_agent": "ua", "merchants": [], "affiliate": {"affiliate": 900011, "name": "Asha", "state": "approved"}}', 'his session');
update affiliate.login_attempt set last_at = last_at - interval '2 days', locked_until = null;
select pg_temp.begin_login('ghost@people.example') \g /dev/null
select is((select failures from affiliate.login_attempt where email_hash = affiliate.email_hash('ghost@people.example')), 1, 'tries are forgotten after a day');

-- Sessions
select is(pg_temp.outcome('new', 'session_delete', '{}', '{}'), '204', 'logged out');
select is(pg_temp.outcome('new', 'session_show'), 'AF401 unauthenticated', 'and gone');
select pg_temp.end_login('{"user_id": 900105}') \g /dev/null
select is(jsonb_array_length(pg_temp.call('asha', 'session_list') -> 'rows'), 2, 'both sessions');
select is(pg_temp.outcome('asha', 'session_revoke', jsonb_build_object('session', session_id)), '204', 'one ends the other')
  from affiliate.session where token_hash = 'token-new';
select is(pg_temp.outcome('asha', 'session_revoke', jsonb_build_object('session', session_id)), 'AF404 not_found', 'but not somebody else''s')
  from affiliate.session where token_hash = 'token-bikram';
select is(pg_temp.outcome('bikram', 'session_show'), '200', 'which lives on');
update affiliate.session set last_seen_at = now() - interval '29 minutes' where token_hash = 'token-asha';
select is(pg_temp.outcome('asha', 'session_show'), '200', 'idle, but not too long');
select is((select last_seen_at from affiliate.session where token_hash = 'token-asha'), now(), 'it was seen now');
update affiliate.session set last_seen_at = now() - interval '31 minutes' where token_hash = 'token-asha';
select is(pg_temp.outcome('asha', 'session_show'), 'AF401 unauthenticated', 'idle for too long');
update affiliate.session set last_seen_at = now(), created_at = now() - interval '13 hours' where token_hash = 'token-asha';
select is(pg_temp.outcome('asha', 'session_show'), 'AF401 unauthenticated', 'a session is over some time, however busy');
update affiliate.session set created_at = now() where token_hash = 'token-asha';
select is((select count(*) from affiliate.api_call('{"session": "token-asha"}', 'me_show', '{}', '{}')), 2::bigint, 'to read takes no CSRF token');
select throws_ok($$select affiliate.api_call('{"session": "token-asha"}', 'me_update', '{"name": "x"}', '{}')$$, 'AF403', null, 'to change does');
select throws_ok($$select affiliate.api_call('{"session": "token-asha", "csrf": "csrf-bikram"}', 'me_update', '{"name": "x"}', '{}')$$, 'AF403', null, 'this session''s');
select throws_ok($$select affiliate.login_person('{"session": "token-asha", "csrf": "x"}', '{}')$$, 'AF403', null, 'so does what C reads to check a password');

-- Passwords
select is(pg_temp.outcome('asha', 'me_password_update', '{"_current": "$scrypt$old", "_password": "$scrypt$n", "_token": "token-t", "_csrf": "csrf-t"}'),
    'AF409 conflict', 'a password that was changed meanwhile');
select pg_temp.end_login('{"user_id": 900105}') \g /dev/null
select is(pg_temp.outcome('asha', 'me_password_update', '{"_current": "$scrypt$fixture-asha", "_password": "$scrypt$n", "_token": "token-t", "_csrf": "csrf-t"}'),
    '200', 'another password');
select is((select array_agg(token_hash) from affiliate.session where user_id = 900105), '{token-t}', 'ends all sessions, and gives this one another token');
select is((pg_temp.mail()).template, 'password_changed', 'and is told by mail');
select is(pg_temp.call(null, 'password_reset_create', '{"email": "ghost@people.example"}') -> 'head', '{"status": 202}', 'forgotten, by nobody');
select is((pg_temp.mail()).template, 'password_changed', 'which mails nobody');
select is(pg_temp.call(null, 'password_reset_create', '{"email": "Asha@people.example"}') -> 'head', '{"status": 202}', 'forgotten');
create temp table reset as select pg_temp.token(n) as t from pg_temp.mail() n where n.template = 'password_reset';
select pg_temp.begin_login('asha@people.example') from generate_series(1, 6) \g /dev/null
select is(pg_temp.outcome(null, 'password_reset_update', t || '{"_password": "$scrypt$reset"}'), '204', 'set again') from reset;
select is((select password from affiliate.person where user_id = 900105), '$scrypt$reset', 'it is the new one');
select is((select count(*) from affiliate.session where user_id = 900105), 0::bigint, 'all sessions are over');
select is(pg_temp.begin_login('asha@people.example') ->> 'locked_for', '0', 'and nothing is locked');
select is(pg_temp.outcome(null, 'password_reset_update', t || '{"_password": "$scrypt$again"}'), 'AF404 token_invalid', 'once only') from reset;
update affiliate.people_policy set mail_pause = '1 hour';
select pg_temp.call(null, 'password_reset_create', '{"email": "bikram@people.example"}') from generate_series(1, 3) \g /dev/null
select is((select count(*) from affiliate.notice where user_id = 900106), 1::bigint, 'asking often mails once');
update affiliate.people_policy set mail_pause = '0';
insert into affiliate.session (user_id, token_hash, csrf_hash) values (900105, 'token-asha', 'csrf-asha');

-- Another address
select is(pg_temp.outcome('asha', 'me_email_update', '{"email": "asha2@people.example", "_current": "$scrypt$reset"}'), '202', 'another address');
select is((select email from affiliate.person where user_id = 900105), 'asha@people.example', 'is not his before he proves it');
select is((pg_temp.mail()).data ->> 'to', 'asha2@people.example', 'the mail goes there');
select is(pg_temp.outcome(null, 'email_verification_create', pg_temp.token(n)), '200', 'proven') from pg_temp.mail() n;
select is((select email from affiliate.person where user_id = 900105), 'asha2@people.example', 'now it is');
select is((pg_temp.mail()).data ->> 'to', 'asha@people.example', 'and the old one is told');
select is(pg_temp.outcome('asha', 'me_email_update', '{"email": "bikram@people.example", "_current": "$scrypt$reset"}'), '202', 'somebody else''s address');
select is((pg_temp.mail()).template || ' ' || (pg_temp.mail()).user_id, 'already_registered 900106', 'is only told to him');

-- Codes
select is(pg_temp.call('asha', 'me_totp_create', '{"_current": "$scrypt$reset", "_secret": "c0de"}'), '{"head": {"status": 201}, "rows": [{"_secret": "c0de"}]}', 'a secret');
select is(pg_temp.begin_login('asha2@people.example') ->> 'totp', null, 'which counts for nothing yet');
select is(affiliate.login_person(pg_temp.credential('asha'), '{}') ->> 'totp_pending', 'c0de', 'but is there to be confirmed');
select is(pg_temp.outcome('asha', 'me_totp_update', '{"_step": 100, "_codes": ["h1", "h2"], "_recovery": "5ea1"}'), '200', 'confirmed');
select is(pg_temp.begin_login('asha2@people.example') ->> 'totp', 'c0de', 'now it does');
select is(pg_temp.end_login('{"user_id": 900105}'), 'AF401 invalid_credentials', 'no login without a code');
select is(pg_temp.end_login('{"user_id": 900105, "totp_step": 100}'), 'AF401 invalid_credentials', 'nor with one that was used');
select is(pg_temp.end_login('{"user_id": 900105, "totp_step": 101}'), '201', 'with the next one');
select is(pg_temp.end_login('{"user_id": 900105, "totp_step": 101, "token": "x"}'), 'AF401 invalid_credentials', 'once');
select is(pg_temp.end_login('{"user_id": 900105, "recovery": "h9", "token": "x"}'), 'AF401 invalid_credentials', 'a recovery code that is none');
select is(pg_temp.end_login('{"user_id": 900105, "recovery": "h1", "token": "x"}'), '201', 'one that is');
select is(pg_temp.end_login('{"user_id": 900105, "recovery": "h1", "token": "y"}'), 'AF401 invalid_credentials', 'once');
select is(pg_temp.outcome('asha', 'me_recovery_codes_create', '{"_current": "$scrypt$reset", "_codes": ["h3"], "_recovery": "5ea1"}'), '201', 'new recovery codes');
select is(pg_temp.end_login('{"user_id": 900105, "recovery": "h2", "token": "y"}'), 'AF401 invalid_credentials', 'replace the old ones');
select is(pg_temp.outcome('asha', 'me_totp_create', '{"_current": "$scrypt$reset", "_secret": "0ther"}'), 'AF409 state', 'a secret is not replaced, but given up first');
select is(pg_temp.outcome('asha', 'me_totp_delete', '{"_current": "$scrypt$reset"}'), '204', 'given up');
select is(pg_temp.end_login('{"user_id": 900105, "token": "z"}'), '201', 'and no code is asked for');

-- Members
select is(pg_temp.outcome('owner', 'member_invitation_create', '{"merchant": "900001", "email": "NOBODY2@people.example", "role": "manager"}'), '201', 'invited');
select is((pg_temp.mail()).data ->> 'to', 'NOBODY2@people.example', 'by mail');
select is(pg_temp.outcome('owner', 'member_invitation_create', '{"merchant": "900001", "email": "manager@people.example", "role": "owner"}'), 'AF409 conflict', 'who is one can''t be');
create temp table invited as select i.* from affiliate.invitation i where i.merchant_id = 900001;
select is(pg_temp.outcome('bikram', 'invitation_accept', jsonb_build_object('invitation', invitation_id)), 'AF404 not_found', 'not somebody else') from invited;
select is(pg_temp.row('nobody2', 'invitation_list') ->> 'merchant_name', 'Shop', 'who is invited sees it');
select is(pg_temp.row('nobody2', 'invitation_accept', jsonb_build_object('invitation', invitation_id)) ->> 'role', 'manager', 'and accepts') from invited;
select is(pg_temp.row('nobody2', 'merchant_list') ->> 'role', 'manager', 'now it is a merchant of his');
select is(pg_temp.outcome('owner', 'member_update', '{"merchant": "900001", "user": "900101", "role": "manager"}'), 'AF409 state', 'the last owner stays one');
select is(pg_temp.outcome('owner', 'member_delete', '{"merchant": "900001", "user": "900101"}'), 'AF409 state', 'and stays');
select is(pg_temp.outcome('owner', 'member_update', '{"merchant": "900001", "user": "900108", "role": "owner"}', '{"if_match": "\"7\""}'), 'AF412 precondition_failed', 'not the version that is there');
select is(pg_temp.outcome('owner', 'member_update', '{"merchant": "900001", "user": "900108", "role": "owner"}', '{"if_match": "\"1\""}'), '200', 'another owner');
select is(pg_temp.outcome('owner', 'member_delete', '{"merchant": "900001", "user": "900101"}'), '204', 'now he may go');
select is(pg_temp.outcome('owner', 'merchant_show', '{"merchant": "900001"}'), 'AF404 not_found', 'and has nothing to do with it any more');
select is(pg_temp.outcome('nobody2', 'member_delete', '{"merchant": "900001", "user": "900104"}'), 'AF404 not_found', 'a member of another merchant is none');

-- A person who is suspended
select is(pg_temp.outcome('admin', 'admin_person_suspend', '{"user": "900106", "reason": "spam"}'), '200', 'suspended');
select is(pg_temp.outcome('bikram', 'session_show'), 'AF401 unauthenticated', 'is out at once');
select is(pg_temp.end_login('{"user_id": 900106, "token": "b"}'), 'AF403 suspended', 'and does not come in');
select is(pg_temp.outcome('admin', 'admin_person_suspend', '{"user": "900107", "reason": "x"}'), 'AF403 forbidden', 'admins only by the command line');
select is(u ->> 'active', 'false', 'which does') from affiliate.user_suspend('{"user": 900107}') u;

select * from finish();
rollback;
