-- The projection: what changes is noted, versions only go up, views say what Redis must hold.

\ir support/fixture.psql

select plan(17);

create temp table seen (version bigint);
create function pg_temp.noted()
returns setof text
language sql
as $$
    with taken as (
        select * from affiliate.projection_take(1000)
    ),
    done as (
        select affiliate.projection_done((select array_agg(change_id) from taken))
    )
    select kind || ' ' || name from taken, done order by 1
$$;
create function pg_temp.version_grew()
returns boolean
language sql
as $$
    with now as (
        select version from affiliate.link_projection where code = 'fixture-1'
    ),
    kept as (
        insert into seen select version from now returning version
    )
    select (select version from now) > coalesce((select max(version) from seen), 0)
$$;

select results_eq($$ select pg_temp.noted() $$, $$ values ('link fixture-1'), ('link fixture-2'), ('link fixture-3'), ('link fixture-4') $$,
    'new links');
select is_empty($$ select * from affiliate.projection_take(10) $$, 'done is done');
select ok(pg_temp.version_grew(), 'a version');
select results_eq($$ select link_id, merchant_id, campaign_id, affiliate_id, expires_ms, state, livemode, url, param, fallback, hosts
                       from affiliate.link_projection where code = 'fixture-1' $$,
    $$ values (900041::bigint, 900001::bigint, 900021::bigint, 900011::bigint, 0::bigint, 1::smallint, true,
               'https://shop.example/', '', '', '{shop.example,*.shop.example}'::text[]) $$, 'the record');

select affiliate.link_pause('{"link": "fixture-1"}') \g /dev/null
select results_eq($$ select pg_temp.noted() $$, $$ values ('link fixture-1') $$, 'a link changes');
select ok(pg_temp.version_grew(), 'its version grows');
select is((select state from affiliate.link_projection where code = 'fixture-1'), 2::smallint, 'paused');
select affiliate.link_resume('{"link": "fixture-1"}') \g /dev/null
select pg_temp.noted() \g /dev/null
select affiliate.campaign_suspend('{"campaign": 900021}') \g /dev/null
select results_eq($$ select pg_temp.noted() $$, $$ values ('link fixture-1'), ('link fixture-2') $$, 'a campaign''s links');
select is((select state from affiliate.link_projection where code = 'fixture-1'), 2::smallint, 'are paused with it');
select ok(pg_temp.version_grew(), 'its version grows');
select affiliate.merchant_update('{"merchant": 900001, "host": "new.example"}') \g /dev/null
select results_eq($$ select pg_temp.noted() $$, $$ values ('link fixture-1'), ('link fixture-2'), ('link fixture-3') $$, 'a merchant''s links');
select ok(pg_temp.version_grew(), 'its version grows');
select affiliate.affiliate_suspend('{"affiliate": 900012}') \g /dev/null
select results_eq($$ select pg_temp.noted() $$, $$ values ('link fixture-2') $$, 'an affiliate''s links');
select affiliate.key_create('{"merchant": 900001, "livemode": false, "key_id": "ak_test_p", "master_id": "m"}') \g /dev/null
select results_eq($$ select pg_temp.noted() $$, $$ values ('key ak_test_p') $$, 'a key');
select affiliate.key_revoke('{"key": "ak_test_p"}') \g /dev/null
select results_eq($$ select pg_temp.noted() $$, $$ values ('key ak_test_p') $$, 'revoked');
select results_eq($$ select k.merchant_id, k.livemode, k.revoked, k.master_id, k.version - m.version
    from affiliate.key_projection k join affiliate.merchant m using (merchant_id) where key_id = 'ak_test_p' $$,
    $$ values (900001::bigint, false, true, 'm', 2::bigint) $$, 'the record');
select affiliate.link_remove('{"link": "fixture-1"}') \g /dev/null
select is((select state from affiliate.link_projection where code = 'fixture-1'), 3::smallint, 'a removed link stays, as removed');

select * from finish();
rollback;
