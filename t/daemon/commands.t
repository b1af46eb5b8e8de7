# The control plane by its commands: what each does, and that a wrong one names the field and ends with code 2.

use Affiliated::Test;
use Affiliated::Daemon;

my $t = Affiliated::Test->new;
my ($code, $out, $err);

$t->redis_start;
$t->pg_start;

sub wrong
{
    my ($error, @arguments) = @_;
    my ($code, $out, $err) = $t->cli(@arguments);

    is($code, 2, "a mistake: affiliated @arguments");
    like($err, $error, 'is told');
    is($out, '', 'and nothing else');
}

# --- merchants --------------------------------------------------------------------------------------------------------------

my $m = $t->cli_json(qw(merchant create --name Shop --host shop.example --host *.shop.example));
like($m->{merchant}, qr/^[1-9]\d*$/, 'a merchant has an id');
is_deeply($m->{hosts}, ['shop.example', '*.shop.example'], 'and hosts');
is($t->cli_json('merchant', 'show', $m->{merchant})->{name}, 'Shop', 'shown by its id');
is($t->cli_json('merchant', 'update', $m->{merchant}, '--name=--Shop--')->{name}, '--Shop--', 'updated');
is_deeply($t->cli_json('merchant', 'show', '--merchant', $m->{merchant})->{hosts}, $m->{hosts}, 'what is not named stays');
ok(!$t->cli_json('merchant', 'suspend', $m->{merchant})->{active}, 'suspended');
ok($t->cli_json('merchant', 'activate', $m->{merchant})->{active}, 'and active again');
$t->cli_json(qw(merchant create --name Other --host other.example));
is(scalar(my @merchants = $t->cli_json(qw(merchant list))), 2, 'both are listed');
is(scalar(@merchants = $t->cli_json('merchant', 'list', '--after', $m->{merchant})), 1, 'one behind the first');
is(scalar(@merchants = $t->cli_json('merchant', 'list', '--limit', 1)), 1, 'one of them');
($code, $out) = $t->cli('merchant', 'list');
like($out, qr/^merchant  .*\n +\d+  /, 'as a table for people');
wrong(qr/name: is required/, qw(merchant create --host a.example));
wrong(qr/host: /, qw(merchant create --name A --host), 'a b');
wrong(qr/color: is not a field/, qw(merchant create --name A --host a.example --color red));
wrong(qr/merchant: must be an id/, qw(merchant show x));
wrong(qr/merchant: there is none with id 4711/, qw(merchant show 4711));
wrong(qr/merchant: is given twice/, qw(merchant show 1 --merchant 1));
wrong(qr/one argument too many/, qw(merchant show 1 2));
wrong(qr/name: a value is missing/, qw(merchant create --name));
wrong(qr/is no option/, qw(merchant create --Name x));
wrong(qr/name: is not UTF-8/, 'merchant', 'create', '--name', "\xff");
wrong(qr/say what to do: create list show update approve reject suspend activate/, 'merchant', 'delete');
wrong(qr/say what to do/, 'merchant');
wrong(qr/there is no command "merchants"/, 'merchants');

# --- affiliates ----------------------------------------------------------------------------------------------------------------

my $a = $t->cli_json('affiliate', 'create', '--name', 'आशा', '--email', 'asha@example.com');
is($t->cli_json('affiliate', 'show', $a->{affiliate})->{email}, 'asha@example.com', 'an affiliate');
is($t->cli_json('affiliate', 'update', $a->{affiliate}, '--email', 'a@example.com')->{email}, 'a@example.com', 'updated');
ok(!$t->cli_json('affiliate', 'suspend', $a->{affiliate})->{active}, 'suspended');
ok($t->cli_json('affiliate', 'activate', $a->{affiliate})->{active}, 'active');
is(scalar(my @affiliates = $t->cli_json(qw(affiliate list))), 1, 'listed');
wrong(qr/email: must be an e-mail address/, qw(affiliate create --name B --email nowhere));
wrong(qr/email: is another affiliate's/, qw(affiliate create --name B --email A@example.com));

# --- campaigns -------------------------------------------------------------------------------------------------------------------

my @campaign = ('campaign', 'create', '--merchant', $m->{merchant}, '--name', 'All');
my $c = $t->cli_json(@campaign, qw(--currency NPR --rate-basis-points 1000 --hold), '2 days');
is($c->{terms}{rate_basis_points}, 1000, 'a campaign has terms');
is($t->cli_json('campaign', 'terms', $c->{campaign}, '--rate-basis-points', 500)->{rate_basis_points}, 500, 'and new ones');
is($t->cli_json('campaign', 'show', $c->{campaign})->{terms}{rate_basis_points}, 500, 'which are in force');
is($t->cli_json('campaign', 'update', $c->{campaign}, '--name', 'Most')->{name}, 'Most', 'updated');
ok(!$t->cli_json('campaign', 'suspend', $c->{campaign})->{active}, 'suspended');
ok($t->cli_json('campaign', 'activate', $c->{campaign})->{active}, 'active');
is(scalar(my @campaigns = $t->cli_json('campaign', 'list', '--merchant', $m->{merchant})), 1, 'listed');
wrong(qr/currency: must be an ISO 4217 currency/, @campaign, qw(--currency RUP --rate-basis-points 1000 --hold), '2 days');
wrong(qr/rate_basis_points: must be a whole number from 0 to 10000/, @campaign, qw(--currency NPR --rate-basis-points 10.5 --hold), '2 days');
wrong(qr/hold: must be a span of time/, @campaign, qw(--currency NPR --rate-basis-points 1000 --hold soon));
wrong(qr/rate_flat: must have at most 2 decimals/, @campaign, qw(--currency NPR --rate-flat 1.005 --hold), '2 days');

# --- links and keys -----------------------------------------------------------------------------------------------------------------

my @link = ('link', 'create', '--merchant', $m->{merchant}, '--campaign', $c->{campaign}, '--affiliate', $a->{affiliate});
my $l = $t->cli_json(@link, '--url', 'https://www.shop.example/shoes?x=1');
like($l->{code}, qr/^[23456789a-z]{6,}$/, 'a link has a code');
is($t->cli_json('link', 'show', $l->{code})->{url}, 'https://www.shop.example/shoes?x=1', 'and a URL');
is($t->cli_json('link', 'update', $l->{code}, '--url', 'https://shop.example/')->{url}, 'https://shop.example/', 'updated');
is($t->cli_json('link', 'pause', $l->{code})->{state}, 'paused', 'paused');
is($t->cli_json('link', 'resume', $l->{code})->{state}, 'active', 'resumed');
is(scalar(my @links = $t->cli_json('link', 'list', '--merchant', $m->{merchant})), 1, 'listed');
is($t->cli_json('link', 'remove', $l->{code})->{state}, 'removed', 'removed');
wrong(qr/url: /, @link, '--url', 'https://elsewhere.example/');
wrong(qr/url: must be an absolute http or https URL/, @link, '--url', 'javascript:alert(1)');
wrong(qr/there is none/, 'link', 'show', 'nowhere');

my @key = ('key', 'create', $m->{merchant});
my $k = $t->cli_json(@key, qw(--livemode true --label till));
like($k->{key}, qr/^ak_live_/, 'a live key');
like($k->{secret}, qr/^aks_live_/, 'whose secret is shown');
($code, $out, $err) = $t->cli('key', 'show', $k->{key}, '--json');
is($code, 0, 'once:');
unlike($out, qr/secret|aks_/, 'later it is not');
like($t->cli_json(@key, qw(--livemode false))->{key}, qr/^ak_test_/, 'a test key');
is(scalar(my @keys = $t->cli_json('key', 'list', '--merchant', $m->{merchant})), 2, 'both are listed');
ok($t->cli_json('key', 'revoke', $k->{key})->{revoked_at}, 'revoked');
is($t->value("select count(*) from affiliate.api_key k where k::text like '%$k->{secret}%'"), 0, 'no secret is in the database');
wrong(qr/livemode: is required/, @key);
wrong(qr/livemode: must be true or false/, @key, qw(--livemode yes));
wrong(qr/made here, not given/, @key, qw(--livemode true --key-id ak_live_x));

# --- orders, balances, the audit --------------------------------------------------------------------------------------------------

my $w = $t->world(hold => '1 day', rate => 1000, fee => 2000);
my %of = (merchant => $w->{merchant}, campaign => $w->{campaign}, affiliate => $w->{affiliate}, count => 3,
    start_ms => int(time() * 1000), delay_ms => 1000, seed => $t->{seed} % 1000);
produce($t, %of);
produce($t, %of, channel => 'conversions', statuses => 'pending,approved');
$t->daemon_start;
$t->wait_until('orders', sub { $t->value('select count(*) from affiliate.order_fact') == 3 });
my @order = ('--merchant', $w->{merchant}, '--order', "order-$of{seed}-0");
my $o = $t->cli_json('order', 'show', @order);
is("$o->{state} $o->{amount} $o->{currency} $o->{commission} $o->{fee}", 'approved 1250.50 NPR 125.05 25.01', 'an order');
is(scalar @{ $o->{timeline} }, 2, 'with its timeline');
cmp_ok(scalar @{ $o->{transfers} }, '>=', 2, 'and transfers');
like($o->{sentence}, qr/on hold until/, 'and a sentence');
is(scalar(my @orders = $t->cli_json('order', 'list', '--merchant', $w->{merchant}, '--outcome', 'accepted')), 3, 'all are listed');
is($t->cli_json('order', 'review', @order, qw(--decision reject --reason), 'a test')->{state}, 'rejected', 'one is rejected by review');
my %pending = map { ("$_->{owner} $_->{kind}" => $_->{balance}) }
    $t->cli_json('balance', $w->{merchant}, '--livemode', 'true');
is($pending{'affiliate pending'}, '250.10', 'the balance is that of the others');
($code, $out) = $t->cli('balance', '--affiliate', $w->{affiliate});
like($out, qr/250\.10/, 'also as a table');
wrong(qr/order: merchant \d+ has none with id 'x'/, 'order', 'show', 'x', '--merchant', $w->{merchant});
wrong(qr/decision: must be accept or reject/, 'order', 'review', @order, qw(--decision maybe --reason x));
wrong(qr/owner: must be affiliate, merchant or platform/, qw(balance --owner me));
wrong(qr/takes nothing but --since and --json/, 'audit', 'now');
wrong(qr/since: must be a span of time/, qw(audit --since yesterday));
wrong(qr/since: must be a time/, qw(audit --since 2026-13-01));
wrong(qr/color: is not a field/, qw(audit --color red));
wrong(qr/dead_letter: must be an id/, qw(dead-letters replay x));
wrong(qr/takes ids, or --reason/, qw(dead-letters replay));
wrong(qr/say what to do: list show replay/, qw(dead-letters bury));
wrong(qr/there is none with id 1/, qw(dead-letters show 1));

books_hold($t);
for my $since ('1 hour', '2026-01-01T00:00:00Z') {
    ($code, $out, $err) = $t->cli('audit', '--since', $since);
    is("$code $out", "0 the books hold\n", "also those since $since") or diag $err;
}
for my $corruption (
    ['affiliate.account set credits_minor = credits_minor + 1 where owner = \'affiliate\' and kind = \'pending\' and credits_minor > 0', qr/account is the sum of its transfers/],
    ['affiliate.order_fact set amount_minor = amount_minor + 1 where order_id = \'' . "order-$of{seed}-1'", qr/facts are what the conversions say/],
    ['affiliate.inbox set records = records + 1', qr/batch is accounted for/],
    )
{
    my ($change, $finds) = @$corruption;
    my ($table) = $change =~ /^(\S+)/;
    $t->psql("create table public.kept as select * from $table; set session_replication_role = replica; update $change");
    for my $since ([], ['--since', '1 hour']) {
        ($code, $out, $err) = $t->cli('audit', '--json', @$since);
        is($code, 1, "the audit @$since finds a corruption: " . ($change =~ s/ where.*//r)) or diag $err;
        ok(scalar(grep { JSON::PP::decode_json($_)->{invariant} =~ $finds } split /\n/, $out), 'and names what is broken') or diag $out;
    }
    $t->psql("set session_replication_role = replica; delete from $table; insert into $table overriding system value select * from public.kept; drop table public.kept");
}
books_hold($t, 'mended, they hold again');

# --- people ----------------------------------------------------------------------------------------------------------------------------

my $file = $t->write('password', "correct horse battery\n");
my $user = $t->cli_json(qw(user create --email Root@example.org --name Root --admin true --password-file), $file);
ok($user->{admin} && $user->{verified}, 'an admin');
like($t->value("select password from affiliate.person where user_id = $user->{user}"), qr/^\$scrypt\$ln=\d+,r=8,p=3\$/, 'whose password was hashed');
unlike(join('', map { $_->[0] } $t->rows('select x::text from affiliate.audit_record x')), qr/scrypt|horse/, 'and is in no record');
($code, $out, $err) = $t->cli(qw(user create --email root@EXAMPLE.org --name Other));
is($code, 2, 'an address is one user\'s');
like($err, qr/^affiliated: email: is another user's$/m, 'whatever the case of its letters');
$t->write('password', "short\n");
($code, $out, $err) = $t->cli('user', 'update', $user->{user}, '--password-file', $file);
is($code, 2, 'a short password');
like($err, qr/at least 10 characters/, 'is refused');
my $shop = $t->cli_json(qw(merchant create --name Members --host members.example));
is($t->cli_json('member', 'create', $shop->{merchant}, '--user', $user->{user}, '--role', 'owner')->{role}, 'owner', 'a member');
($code, $out, $err) = $t->cli('member', 'remove', $shop->{merchant}, '--user', $user->{user});
is($code, 1, 'the last owner stays');
($code, $out, $err) = $t->cli('merchant', 'reject', $shop->{merchant}, '--reason', 'no');
is($code, 1, 'who is approved is not rejected');
like($err, qr/The merchant is approved\./, 'which is told');
is($t->cli_json('merchant', 'suspend', $shop->{merchant}, '--reason', 'fraud')->{state}, 'suspended', 'but suspended');
is($t->value("select reason || ' ' || actor from affiliate.audit_record where action = 'merchant.suspend' and id = '$shop->{merchant}'"), 'fraud system',
    'with a reason, on record');
ok(!$t->cli_json('user', 'suspend', $user->{user})->{active}, 'a user is suspended');
is($t->cli_json('affiliate', 'create', '--name', 'Linked', '--user', $user->{user})->{email}, 'Root@example.org', 'an affiliate of a user has his address');

# --- the rest -------------------------------------------------------------------------------------------------------------------------

($code, $out) = $t->cli('help');
is($code, 0, 'help');
like($out, qr/^  $_/m, "names $_") for qw(run migrate check status audit balance user merchant member campaign affiliate link key order dead-letters dump);
($code, $out, $err) = $t->cli();
is($code, 2, 'no command at all');
like($err, qr/^usage: affiliated/, 'is answered with the usage');
for my $option (qw(-V --version)) {
    ($code, $out) = $t->cli($option);
    like($out, qr/^affiliated \d+\.\d+/, "$option: its version");
}
for my $option (qw(-h --help)) {
    ($code, $out) = $t->cli($option);
    is($code, 0, $option);
    like($out, qr/^usage: affiliated/, 'is the same as help');
}
($code, $out, $err) = $t->cli('--colour');
is($code, 2, 'an option that there is not');
like($err, qr/--colour'\n.*see `affiliated help`\n\z/, 'is named, and where to look');
$t->pg_stop;
($code, $out, $err) = $t->cli('merchant', 'list');
is($code, 1, 'without PostgreSQL a command fails');
like($err, qr/^affiliated: PostgreSQL: /, 'and says so');
done_testing();
