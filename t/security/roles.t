# The daemon by a login that owns nothing: it works, and that login can not rewrite what was counted.

use Affiliated::Test;
use Affiliated::Daemon;

my $t = Affiliated::Test->new;

$t->redis_start;
$t->pg_start(empty => 1, conf => 'fsync = on');
$t->psql('create role affiliate_tenant nologin; create role affiliate_owner nologin in role affiliate_tenant; create role affiliated login; create role clerk login; create role server login;'
    . 'alter database affiliate owner to affiliate_owner', db => 'postgres');

sub conf { my $user = shift; return $t->daemon_conf(conf => { postgres => { conninfo => "host=$t->{pg_socket} user=$user dbname=affiliate" } }, @_) }

sub as
{
    my ($user, $sql) = @_;
    my ($code, $out, $err) = $t->run({ stdin => $sql, env => { PGOPTIONS => '-c client_min_messages=warning' } }, $t->pg_bin . '/psql', '-XAtq',
        '-v', 'ON_ERROR_STOP=1', '-v', 'VERBOSITY=sqlstate', '-h', $t->{pg_socket}, '-U', $user, '-d', 'affiliate', '-f', '-');
    chomp $out;
    return $code ? $err =~ /ERROR:\s+(\w{5})/ ? $1 : $err : $out;
}

sub denied { my ($user, $sql, $name) = @_; return is(as($user, $sql), '42501', $name // $sql) }

# --- as an operator sets it up ----------------------------------------------------------------------------------------------------

my $example = $t->slurp("$Affiliated::Test::TOP/conf.examples/postgresql-roles.sql");
conf('postgres');
my $options = $ENV{PGOPTIONS};
$ENV{PGOPTIONS} = '-c role=affiliate_owner';
my ($code, $out, $err) = $t->cli('migrate');
if (defined $options) { $ENV{PGOPTIONS} = $options } else { delete $ENV{PGOPTIONS} }
is($code, 0, 'the owner, who can not log in, migrates') or diag $err;
is($t->value("select count(*) from pg_class c where relnamespace = 'affiliate'::regnamespace and relowner <> 'affiliate_owner'::regrole"), 0,
    'and owns everything');
denied('affiliated', 'select * from affiliate.schema_version', 'before it is given its rights, the daemon sees nothing');
my ($grants) = $example =~ /^(set role affiliate_owner;\n.*?^reset role;)/ms;
ok($grants, 'the example has the grants');
unlike(as('postgres', $grants), qr/^\d{5}$/, 'as printed, they are given');
is(as('postgres', "set role affiliate_owner; select affiliate.grant_rights('clerk', true)"), '', 'and to one who gives commands');

# --- it works -----------------------------------------------------------------------------------------------------------------------

conf('clerk');
$t->cli_json(qw(merchant create --name First --host localhost));
conf('affiliated');
$t->daemon_start;
$t->wait_until('partitions', sub { $t->value('select count(*) from affiliate.click_partitions()') > 0 });
rename $t->path('affiliated.conf'), $t->path('daemon.conf');
conf('clerk');
my $w = $t->world;
$t->wait_until('the projection', sub { $t->redis('EXISTS', "aff:link:$w->{link}", "aff:key:$w->{key}{id}") == 2 });
$t->nginx_start(http => 'affiliate_address_rate off;');
my $click;
$t->wait_until('a click', sub { ($click) = ($t->get("/r/$w->{link}")->{headers}{location} // '') =~ /affiliate_click_id=([0-9a-z]{39})/ });
my %event = (click_id => $click, currency => 'NPR', amount => '100.00');
is($t->call($w->{key}, { %event, order_id => 'O-1', status => 'approved' })->{status}, 202, 'an order');
is($t->call($w->{key}, { %event, order_id => 'O-2', status => 'pending' })->{status}, 202, 'another');
$t->wait_until('payable', sub { $t->value("select count(*) from affiliate.order_now o where o.payable") == 1 }) or diag $t->daemon_log;
is($t->call($w->{key}, { %event, order_id => 'O-1', status => 'refunded', amount => '40.00', refund_id => 'r' })->{status}, 202, 'a refund');
drained($t);
$t->wait_until('the refund', sub { $t->value("select refunded_minor from affiliate.order_fact where order_id = 'O-1'") eq '4000' });
books_hold($t, 'who gives commands audits: the books hold');
is($t->cli_json('order', 'show', '--merchant', $w->{merchant}, '--order', 'O-1')->{state}, 'payable', 'and sees orders');
$t->redis('XADD', 'aff:clicks:0', '*', 'b', 'no batch');
produce($t, count => 5, start_ms => midnight_ms(-40), merchant => $w->{merchant});
$t->wait_until('dead letters', sub { $t->value('select count(*) from affiliate.dead_letter') == 6 });
($code, $out, $err) = $t->cli('dead-letters', 'replay', '--reason', 'no_partition', '--json');
is($code, 0, 'and replays dead letters') or diag $err;
is(scalar(split /\n/, $out), 5, 'all of them');
unlike($t->daemon_log, qr/permission denied/, 'nothing was denied to the daemon');
($code, $out) = $t->run({ user => 'postgres' }, $t->_affiliated, '-c', $t->path('daemon.conf'), 'check');
unlike($out, qr/^FAIL .*(?:schema|permission|partition)/m, 'and check finds nothing');

# --- what it may not -------------------------------------------------------------------------------------------------------------------

my @books = qw(transfer conversion click inbox account order_fact hold release release_item waiting dead_letter terms link api_key merchant affiliate campaign
    currency transfer_code product_rate link_code api_key_id projection_change schema_version retention_floor person session member audit_record token
    recovery_code login_attempt people_policy notice api_answer api_operation api_entry);
my $leaf = ($t->rows('select relation from affiliate.click_partitions() order by day desc limit 1'))[0][0];

for my $table (map({ "affiliate.$_" } @books), $leaf) {
    my ($column) = map { $_->[0] } $t->rows("select attname from pg_attribute where attrelid = '$table'::regclass and attnum > 0
        and attidentity <> 'a' order by attnum limit 1");
    denied('affiliated', "update $table set $column = $column", "affiliated can not update $table");
    denied('affiliated', "delete from $table", 'nor delete from it');
    denied('affiliated', "truncate $table", 'nor empty it');
    denied('affiliated', "alter table $table add x integer", 'nor change it');
    denied('affiliated', "create trigger x before insert on $table for each row execute function suppress_redundant_updates_trigger()", 'nor put a trigger on it');
    denied('affiliated', "insert into $table default values", 'nor insert') unless $table =~ /click/;
    denied('clerk', "update $table set $column = $column", "clerk can not update $table");
    denied('clerk', "delete from $table", 'nor delete from it');
    denied('clerk', "insert into $table default values", 'nor insert') unless $table =~ /click/;
}
isnt($t->value('select count(*) from affiliate.transfer'), 0, 'transfers are there');

# The functions that work for others work for nobody by themselves.
for my $call ('post_accounts()', 'post_moves()', 'post_orders()', 'post_releases()', 'settle_orders()', 'insert_conversions()', 'lock_orders()', 'decide_orders(true)') {
    my $answer = as('affiliated', "select affiliate.$call");
    like($answer, qr/^(?:42501|42P01)$/, "$call is no way in");
}
denied('affiliated', $_) for q{select affiliate.merchant_create('{}')}, q{select affiliate.campaign_terms('{}')}, q{select affiliate.key_create('{}')},
    q{select affiliate.link_update('{}')}, q{select affiliate.order_review('{}')}, q{select affiliate.create_click_partition('2020-01-01')},
    q{select affiliate.dead_letter_replayed(1)}, q{select affiliate.dead_letter_list('{}')};
denied('affiliated', $_) for 'create temp table move (x integer)', 'create table affiliate.x (x integer)', 'create function affiliate.x() returns void language sql as $$$$',
    'drop schema affiliate cascade', 'set role affiliate_owner', 'alter function affiliate.apply_conversions() owner to affiliated',
    "create or replace function affiliate.reason_sentence(p_reason text) returns text language sql as 'select 1'", 'select * from affiliate.transfer',
    'select user_agent from affiliate.click', 'create temp view transfer as select 1';
denied('affiliated', "begin; select affiliate.conversion_stage(); $_") for 'create trigger x before insert on pg_temp.conversion_stage for each row execute function affiliate.count_version()',
    'alter table pg_temp.conversion_stage add x integer', 'insert into pg_temp.move values (1)', 'drop table pg_temp.conversion_stage',
    'update pg_temp.order_known set revision = 0', 'select * from pg_temp.conversion_stage';
is(as('affiliated', "begin; select affiliate.conversion_stage(); insert into pg_temp.conversion_stage (record) values (1); delete from pg_temp.conversion_stage"), '',
    'what the daemon does to its stage it may');
is($t->value("select string_agg(p.oid::regprocedure::text, ', ') from pg_proc p where p.pronamespace = 'affiliate'::regnamespace and p.prosecdef
    and (has_function_privilege('public', p.oid, 'execute') or not coalesce(p.proconfig::text, '') ~ 'search_path=pg_catalog, affiliate, pg_temp')"), '',
    'no way in is open to everybody, or looks for its names elsewhere');

# --- the API's login ---------------------------------------------------------------------------------------------------------------------

is(as('postgres', "set role affiliate_owner; select affiliate.grant_api_rights('server')"), '', 'the API by a login of its own');
is(as('server', q{select affiliate.login_begin('{"email": "a@b"}', '{}') ->> 'locked_for'}), '0', 'lets people log in');
is(as('server', q{select affiliate.key_record('ak_live_none')}), '', 'looks for keys');
is(as('server', q{select affiliate.api_call('{}', 'me_show', '{}', '{}')}), 'AF401', 'and calls operations');
denied('server', $_) for q{select affiliate.api_me_show(null, '{}')}, q{select affiliate.merchant_create('{}')}, q{select affiliate.merchant_view(1)},
    q{select affiliate.record(null, 'a', 'b', 'c', null, null, null)}, q{select affiliate.notify(null, 'a', '{}')}, 'select affiliate.apply_conversions()',
    'select * from affiliate.person', 'select * from affiliate.session', 'select * from affiliate.audit_record', 'select * from affiliate.merchant',
    'set role affiliate_tenant', 'create temp table session (x integer)';
denied('affiliated', $_) for q{select affiliate.api_me_show(null, '{}')}, q{select affiliate.merchant_view(1)}, q{select affiliate.user_create('{}')},
    q{select affiliate.record(null, 'a', 'b', 'c', null, null, null)}, q{select affiliate.decide_merchant(null, 1, 'approve', null)}, 'select * from affiliate.person';
denied('clerk', $_) for q{select affiliate.api_me_show(null, '{}')}, 'select password from affiliate.person', q{update affiliate.audit_record set actor = 'x'};
is(as('clerk', q{select (u ->> 'admin') from affiliate.user_create('{"email": "root@example.org", "name": "Root", "admin": true}') u}), 'true',
    'who gives commands makes admins');
is(as('postgres', q{set role affiliate_owner; update affiliate.audit_record set actor = 'x'}), '42501', 'not even the owner changes a record of what was done');
# Where the daemon's login serves the API, too, what it gets again with its other rights is the same.
like(as('postgres', "set role affiliate_owner; select affiliate.grant_rights('affiliated'); select affiliate.renew_rights()"), qr/^\s*$/, 'rights are renewed');
is(as('affiliated', q{select affiliate.api_call('{}', 'me_show', '{}', '{}')}), 'AF401', 'of the one login that does both');
denied('server', 'select affiliate.apply_conversions()', 'and of none other');
like(as('server', "begin; create policy p on affiliate.click using (true)"), qr/^42501$/, 'policies are the owner\'s');
denied($_, 'select count(*) from affiliate.click_seen', "$_ sees no clicks, though fenced") for qw(affiliated clerk server);

# --- who is given rights --------------------------------------------------------------------------------------------------------------

$t->psql('create role heir login in role affiliate_owner; create role boss login superuser; create role maker login; grant temporary on database affiliate to maker');
for my $role (qw(heir boss maker affiliate_owner)) {
    is(as('postgres', "set role affiliate_owner; select affiliate.$_('$role')"), '0LP01', "$role is given none: they would mean nothing") for qw(grant_rights grant_api_rights);
}
denied('affiliated', "select affiliate.grant_rights('affiliated', true)", 'nobody gives rights to himself');
is(as('postgres', "set role affiliate_owner; select affiliate.grant_rights('clerk')"), '', 'commands are taken back');
denied('clerk', q{select affiliate.merchant_list('{}')}, 'they are gone');

# A migration that adds a way in gives it to who had the others.
$t->psql(q{set role affiliate_owner; create function affiliate.added() returns integer language sql set search_path = pg_catalog, affiliate, pg_temp as 'select 1';
    create function affiliate.added_list(p_command jsonb) returns setof jsonb language sql set search_path = pg_catalog, affiliate, pg_temp as 'select p_command';
    select affiliate.grant_rights('clerk', true);
    select affiliate.enter_as_owner('affiliate.added()', 'affiliate.added_list(jsonb)')});
denied('affiliated', 'select affiliate.added()', 'a new way in is closed');
$t->psql('set role affiliate_owner; select affiliate.renew_rights()');
is(as('affiliated', 'select affiliate.added()'), '1', 'until rights are renewed');
denied('affiliated', q{select affiliate.added_list('{}')}, 'commands stay who had commands');
is(as('clerk', q{select affiliate.added_list('{}')}), '{}', 'who gets them');
rename $t->path('daemon.conf'), $t->path('affiliated.conf');
done_testing();
