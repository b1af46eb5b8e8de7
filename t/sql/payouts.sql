-- Payouts: what they draw from, what is withheld, the file, its answer, and that the auditor sees what is wrong.

\ir support/people.psql

select plan(73);

insert into affiliate.person (user_id, email, name, password, verified_at, is_admin)
values (900110, 'second@people.example', 'second', '$scrypt$fixture-second', now(), true);
insert into affiliate.session (user_id, token_hash, csrf_hash, created_at, last_seen_at)
values (900110, 'token-second', 'csrf-second', now(), now());
insert into affiliate.campaign (merchant_id, campaign_id, name, currency) values (900002, 900024, 'Rupees', 'NPR');
insert into affiliate.terms (merchant_id, campaign_id, terms_id, valid_from, rate_basis_points, fee_basis_points, hold, attribution_window)
values (900002, 900024, 900034, now() - interval '3000 hours', 10000, 0, '0', '720 hours');
insert into affiliate.link (merchant_id, link_id, campaign_id, affiliate_id, livemode, code, url) values
    (900002, 900045, 900024, 900011, true, 'fixture-5', 'https://other.example/'),
    (900002, 900046, 900024, 900012, true, 'fixture-6', 'https://other.example/');
update affiliate.payout_policy set minimum_minor = 100, maximum_minor = 10000000, cool_off = '72 hours' where currency = 'NPR';

-- A commission that is payable, of merchant 900001 (10 % of an order) or 900002 (all of it).
create temp sequence earned;
create function pg_temp.earn(p_minor bigint, p_link bigint default 900041)
returns void
language plpgsql
as $$
declare
    n integer := nextval('pg_temp.earned');
begin
    perform pg_temp.report(jsonb_build_object('order', 'E-' || n, 'status', 'approved', 'click', pg_temp.click(5000 + n, p_link => p_link),
        'merchant', case when p_link >= 900044 then 900002 else 900001 end,
        'amount', case when p_link >= 900044 then p_minor else p_minor * 10 end));
    update affiliate.hold set due_at = now() - interval '1 second' where merchant_id in (900001, 900002);
    perform affiliate.release_holds(100);
end
$$;

create function pg_temp.wallet(p_who text default 'asha')
returns text
language sql
as $$ select concat_ws(' ', w ->> 'payable', w ->> 'in_payout', w ->> 'paid') from pg_temp.row(p_who, 'wallet_list') w where w ->> 'currency' = 'NPR' $$;

create function pg_temp.ask(p_amount text, p_who text default 'asha')
returns bigint
language sql
as $$ select (pg_temp.row(p_who, 'payout_create', jsonb_build_object('amount', p_amount, 'currency', 'NPR')) ->> 'payout')::bigint $$;

create function pg_temp.refusal(p_who text, p_operation text, p_request jsonb default '{}')
returns text
language sql
as $$ select concat_ws(' ', c ->> 'error', c ->> 'code') from pg_temp.call(p_who, p_operation, p_request) c $$;

create function pg_temp.found()
returns setof text
language sql
as $$ select distinct invariant from affiliate.audit() order by 1 $$;

-- Methods
select pg_temp.row('asha', 'payout_method_create', '{"kind": "esewa", "holder": "asha", "account": "9841000001"}') \g /dev/null
select pg_temp.row('bikram', 'payout_method_create', '{"kind": "esewa", "holder": "bikram", "account": "9841000002"}') \g /dev/null
select pg_temp.earn(33333) \g /dev/null
select pg_temp.earn(16668, 900045) \g /dev/null
select is(pg_temp.wallet(), '500.01 0.00 0.00', 'payable at two merchants');
select alike(pg_temp.refusal('asha', 'payout_create', '{"amount": "500.01", "currency": "NPR"}'), 'AF409 cool_off%', 'nothing goes to a new account');
update affiliate.payout_method set changed_at = now() - interval '72 hours';
select alike(pg_temp.refusal('asha', 'payout_create', '{"amount": "0.99", "currency": "NPR"}'), '22023 amount: must be between 1.00 and 100000.00 NPR', 'below the minimum');
select alike(pg_temp.refusal('asha', 'payout_create', '{"amount": "500.02", "currency": "NPR"}'), '22023 amount: must not exceed what is payable, 500.01 NPR', 'more than there is');
select is(pg_temp.refusal('asha', 'payout_create', '{"amount": "1.00", "currency": "NPR", "payout_method": "999999"}'), '22023 payout_method: must be one of yours; make one first', 'another''s method');

-- Draws and tax
select pg_temp.ask('500.01') as first \gset
select is(pg_temp.wallet(), '0.00 500.01 0.00', 'all of it is set aside');
select is((select string_agg(merchant_id || ' ' || amount_minor, ', ' order by merchant_id) from affiliate.payout_draw where payout_id = :first),
    '900001 33333, 900002 16668', 'at both');
select is((select string_agg(code || ' ' || merchant_id || ' ' || cause_revision, ', ' order by merchant_id) from affiliate.transfer where cause_kind = 3 and cause_id = :first),
    '21 900001 1, 21 900002 1', 'a transfer each');
select is(pg_temp.refusal('asha', 'payout_create', '{"amount": "1.00", "currency": "NPR"}'), 'AF409 payout_open', 'one at a time');
select pg_temp.row('admin', 'payout_batch_create', '{"kind": "esewa", "currency": "NPR"}') ->> 'batch' as batch \gset
select is((select concat_ws(' ', tax_basis_points, tax_minor) from affiliate.payout where payout_id = :first), '1500 7500', '15 % of 500.01, half to even');
select is((select string_agg(tax_minor::text, ' ' order by merchant_id) from affiliate.payout_draw where payout_id = :first), '4999 2501', 'its shares add up');
select is(pg_temp.refusal('admin', 'payout_batch_approve', jsonb_build_object('batch', :'batch')), 'AF409 batch_state', 'what is not proposed');
select is(pg_temp.outcome('admin', 'payout_batch_propose', jsonb_build_object('batch', :'batch')), '200', 'proposed');
select is(pg_temp.refusal('admin', 'payout_batch_approve', jsonb_build_object('batch', :'batch')), 'AF403 second_person', 'not by the same person');
select is(pg_temp.outcome('second', 'payout_batch_approve', jsonb_build_object('batch', :'batch')), '200', 'by another');
select throws_ok(format('update affiliate.payout_batch set checker = maker where batch_id = %s', :'batch'), '23514', null, 'nor by any other way');
select is(pg_temp.outcome('second', 'payout_batch_export', jsonb_build_object('batch', :'batch')), '200', 'the file is made');
select is_empty('select * from pg_temp.audit()', 'the books are right');

-- Shares of tax: never more than the part, and together the tax.
savepoint shares;
select setseed(0.42) \g /dev/null
with made as (
    insert into affiliate.payout (affiliate_id, livemode, currency, amount_minor, payout_method_id, kind, holder, account, state)
    select 900012, false, 'NPR', 3, m.payout_method_id, m.kind, m.holder, m.account, 'cancelled'
      from affiliate.payout_method m cross join generate_series(1, 300) where m.affiliate_id = 900012
    returning payout_id
)
insert into affiliate.payout_draw (merchant_id, payout_id, amount_minor)
select v.merchant, made.payout_id, 1 + floor(random() * case when random() < 0.5 then 5 else 1000000 end)::bigint
  from made cross join (values (900001), (900002)) v(merchant);
update affiliate.payout p set amount_minor = d.amount
  from (select payout_id, sum(amount_minor) as amount from affiliate.payout_draw group by 1) d
 where d.payout_id = p.payout_id and p.affiliate_id = 900012;
insert into affiliate.tax_rate values ((now() at time zone 'UTC')::date, false, 3333);
select affiliate.tax_payouts(array(select payout_id from affiliate.payout where affiliate_id = 900012)) \g /dev/null
select is((select count(*) from affiliate.payout p join (select payout_id, sum(tax_minor) as tax from affiliate.payout_draw group by 1) d using (payout_id)
            where p.affiliate_id = 900012 and p.tax_minor = d.tax), 300::bigint, '300 payouts of two merchants: the shares are the tax');
select is((select count(*) from affiliate.payout where affiliate_id = 900012 and tax_basis_points = 3333), 300::bigint, 'by the rate that is valid from today on');
rollback to shares;
insert into affiliate.tax_rate values ((now() at time zone 'UTC')::date + 1, false, 2000);

-- The file
select is(affiliate.csv_cell(t), wanted, 'cell ' || coalesce(quote_literal(t), 'null'))
  from (values ('plain', 'plain'), (null, ''), ('a,b', '"a,b"'), ('say "x"', '"say ""x"""'), (e'two\nlines', e'"two\nlines"'), ('=1+1', ' =1+1'),
               ('+977 98', ' +977 98'), ('-1', '-1'), ('-1+2', ' -1+2'), ('@x', ' @x'), (e'\tx', e' \tx')) v(t, wanted);
select is(affiliate.file_amount(t), wanted, 'amount ' || quote_literal(t))
  from (values ('510.00', 510.00), ('1,00,000.50', 100000.50), ('510', 510), ('', null), ('-1.00', null), ('1.2.3', null), ('1e3', null), ('Rs 5', null)) v(t, wanted);
select is((select file from affiliate.payout_batch where batch_id = :'batch'),
    format(e'Reference,Mobile Number,Name,Amount,Remarks\r\nAP%s,9841000001,asha,425.01,%s AP%1$s\r\nTOTAL 1,,,425.01,\r\n', :'first', reference), 'the file')
  from affiliate.payout_batch where batch_id = :'batch';

-- The answer
create function pg_temp.result(p_rows jsonb, p_header text[] default '{Reference,Amount,Status}', p_who text default 'admin', p_batch text default null)
returns text
language plpgsql
as $$
declare
    wanted jsonb := jsonb_build_object('batch', coalesce(p_batch, (select max(batch_id)::text from affiliate.payout_batch)));
    c jsonb;
    upload text;
begin
    c := pg_temp.call(p_who, 'payout_result_create', wanted || jsonb_build_object('_header', p_header));
    if c ? 'error' then
        return concat_ws(' ', c ->> 'error', c ->> 'code');
    end if;
    upload := c -> 'rows' -> 0 ->> '_upload';
    c := pg_temp.call(p_who, 'payout_result_create_rows', wanted || jsonb_build_object('_upload', upload, '_line', 1, '_rows', p_rows));
    c := pg_temp.call(p_who, 'payout_result_create_done', wanted || jsonb_build_object('_upload', upload, '_lines', jsonb_array_length(p_rows)));
    return coalesce((c ->> 'error') || ' ' || (c ->> 'code'),
                    (select format('paid %s failed %s unknown %s unchanged %s problems %s', r ->> 'paid', r ->> 'failed', r ->> 'unknown', r ->> 'unchanged', r ->> 'problems')
                       from jsonb_array_elements(c -> 'rows') r));
end
$$;
select is(pg_temp.result('[]', '{Reference,Status}'), '22023 header: lacks the column ''Amount''', 'no amounts');
select is(pg_temp.result(jsonb_build_array(jsonb_build_array('AP' || :'first', '425.02', 'paid'))), 'AF409 result_amounts', 'another amount');
select is(pg_temp.result(jsonb_build_array(jsonb_build_array('AP' || :'first', '425.01', 'paid'), jsonb_build_array('Total', '425.00', ''))), 'AF409 result_amounts', 'another total');
select is(pg_temp.result(jsonb_build_array(jsonb_build_array('AP' || :'first', '425.01', 'paid'), jsonb_build_array('AP' || :'first', '425.01', 'failed'))), 'AF409 result_twice', 'twice');
select is(pg_temp.result('[]'), 'paid 0 failed 0 unknown 0 unchanged 0 problems 0', 'an empty answer says nothing');
select is(pg_temp.result(jsonb_build_array(jsonb_build_array('AP' || :'first', '425.01', 'in process'))), 'paid 0 failed 0 unknown 1 unchanged 0 problems 0', 'a word that means neither');
select is(pg_temp.result(jsonb_build_array(jsonb_build_array('AP' || :'first', '425.01', 'in process'))), 'paid 0 failed 0 unknown 0 unchanged 1 problems 0', 'again');
select is(pg_temp.wallet(), '0.00 500.01 0.00', 'unknown: it stays set aside');
select is(pg_temp.result(jsonb_build_array(jsonb_build_array('AP' || :'first', '425.01', ' PAID '), jsonb_build_array('AP0', '1.00', 'paid'))), 'paid 1 failed 0 unknown 0 unchanged 0 problems 1', 'paid');
select is(pg_temp.wallet(), '0.00 0.00 425.01', 'net');
select is(pg_temp.result(jsonb_build_array(jsonb_build_array('AP' || :'first', '425.01', 'rejected'))), 'paid 0 failed 0 unknown 0 unchanged 0 problems 1', 'then the contrary');
select is(pg_temp.wallet(), '0.00 0.00 425.01', 'which changes nothing');
select is((select string_agg(credits_minor - debits_minor || '', ' ' order by merchant_id) from affiliate.account where kind = 'tds_payable' and merchant_id in (900001, 900002)), '4999 2501', 'the tax is owed to the office');
select is((select state from affiliate.payout_batch where batch_id = :'batch'), 'settled', 'the batch is settled');
select is_empty('select * from pg_temp.audit()', 'the books are right');

-- Who is chosen
select pg_temp.earn(100000) \g /dev/null
select pg_temp.earn(100000, 900042) \g /dev/null
select pg_temp.ask('10.00') as second \gset
select pg_temp.ask('20.00', 'bikram') as third \gset
update affiliate.payout_policy set batch_items = 1;
select is(pg_temp.row('admin', 'payout_batch_create', '{"kind": "esewa", "currency": "NPR"}') ->> 'amount', '10.00', 'as many as a file holds, those first that wait longest');
update affiliate.affiliate set suspended = '{[2020-01-01,)}' where affiliate_id = 900012;
select is(pg_temp.refusal('admin', 'payout_batch_create', '{"kind": "esewa", "currency": "NPR"}'), 'AF409 nothing_requested', 'who is suspended is not');
select alike(pg_temp.refusal('admin', 'payout_batch_create', jsonb_build_object('kind', 'esewa', 'currency', 'NPR', 'payouts', jsonb_build_array(:third))), '22023 payouts: must be requested ones%wrong: ' || :'third', 'not even by name');
update affiliate.affiliate set suspended = '{}' where affiliate_id = 900012;
update affiliate.payout_method set account = '9841999999' where affiliate_id = 900012;
select is((select account from affiliate.payout where payout_id = :third), '9841000002', 'a payout goes where it was asked to go');
update affiliate.payout_method set account = '9841000002' where affiliate_id = 900012;
update affiliate.affiliate set user_id = 900110 where affiliate_id = 900012;
select pg_temp.row('admin', 'payout_batch_create', '{"kind": "esewa", "currency": "NPR"}') ->> 'batch' as batch \gset
select is(pg_temp.outcome('admin', 'payout_batch_propose', jsonb_build_object('batch', :'batch')), '200', 'another batch');
select is(pg_temp.refusal('second', 'payout_batch_approve', jsonb_build_object('batch', :'batch')), 'AF403 second_person', 'who is paid by it does not approve it');
update affiliate.affiliate set user_id = 900106 where affiliate_id = 900012;
select is(pg_temp.outcome('second', 'admin_payout_reject', jsonb_build_object('payout', :'third', 'reason', 'No')), '200', 'one is rejected out of it');
select is((select items || ' ' || amount_minor || ' ' || state from affiliate.payout_batch where batch_id = :'batch'), '0 0 proposed', 'it has one less');
select is(pg_temp.wallet('bikram'), '1000.00 0.00 0.00', 'and is payable again');
select is(pg_temp.refusal('bikram', 'payout_cancel', jsonb_build_object('payout', :'second')), 'AF404 not_found', 'another''s');
select is_empty('select * from pg_temp.audit()', 'the books are right');

-- The auditor sees each of these.
savepoint damage;
update affiliate.payout set state = 'failed', reason = 'x' where payout_id = :first;
select set_eq('select * from pg_temp.found()', '{payout stands where its state says}'::text[], 'a state that the ledger does not know');
rollback to damage;
update affiliate.payout_draw set amount_minor = amount_minor + 1 where payout_id = :second;
select set_has('select * from pg_temp.found()', $$values ('payout is the sum of its draws'), ('payout stands where its state says'), ('what is set aside is of payouts under way')$$, 'a draw of another amount');
rollback to damage;
update affiliate.payout_batch set amount_minor = amount_minor + 1, net_minor = net_minor + 1 where batch_id = (select batch_id from affiliate.payout where payout_id = :first);
select set_eq('select * from pg_temp.found()', '{batch is the sum of its payouts}'::text[], 'a batch of another sum');
rollback to damage;
update affiliate.payout_batch set file = file || 'x' where file is not null;
select set_eq('select * from pg_temp.found()', '{file is what was made}'::text[], 'a file that was changed');
rollback to damage;
select throws_ok(format('delete from affiliate.payout where payout_id = %s', :first), null, null, 'no payout is deleted');
select throws_ok('delete from affiliate.payout_batch', null, null, 'nor a batch');
select throws_ok(format('update affiliate.payout_event set state = ''paid'' where payout_id = %s', :first), null, null, 'nor a line of its timeline changed');

select * from finish();
rollback;
