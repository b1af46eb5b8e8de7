# The auditor of the fault runs: silent where nothing was broken; and whatever is damaged, it sees it and says what it is.

use Affiliated::Test;
use Affiliated::Auditor;
use Affiliated::Traffic;

my $t = Affiliated::Test->new;

$t->redis_start;
$t->pg_start;
$t->daemon_start;
my $world = Affiliated::Traffic::make_world($t);
my @known = ((map { "aff:link:$_->{code}" } values %{ $world->{links} }), map { "aff:key:$_->{id}" } @{ $world->{keys} });
$t->wait_until('the projection', sub { $t->redis('EXISTS', @known) == @known });
$t->nginx_start(workers => 2, http => Affiliated::Traffic::nginx_http(), log_level => 'notice');

my %auditor = (dir => $t->{dir}, world => $world);
my $traffic = Affiliated::Traffic->new(%auditor, ports => [($t->{port}) x 2], seed => $t->{seed}, hasty => 0);
$traffic->start;
$t->wait_until('enough traffic', sub {
    my $bytes = 0;
    $bytes += -s for Affiliated::Traffic::journals($t->{dir});
    return $bytes > 400_000;
}, 60);
ok($traffic->stop, 'every call was answered');

my $auditor = Affiliated::Auditor->new(%auditor, strict => 1);
my $reader = sub { return [$t->rows($_[0])] };
is(join("\n", $auditor->settle($reader, 30)), '', 'nothing differs where nothing was broken');
my %counts = %{ $auditor->counts };
note join ', ', map { "$_ $counts{$_}" } sort keys %counts;
ok($counts{clicks_found} > 100 && $counts{events_found} > 100 && $counts{payable} > 10, 'and there was something to compare');
is($counts{events_answered}, $counts{events_found}, 'as many events as were answered');

# --- in PostgreSQL: the damages live as long as the questions ----------------------------------------------------------

my (@planted, %used);

sub plant { my ($name, $pattern, $damage) = @_; push @planted, [$name, $pattern, $damage] }

# All that was planted, each in rows of its own, is found in one look.
sub found
{
    my $damage = join '; ', map { $_->[2] } @planted;
    my @found = $auditor->differences(sub { return [$t->rows("begin; set local session_replication_role = replica; $damage; $_[0]; rollback")] });

    for my $plant (splice @planted) {
        ok(scalar(grep { $_ =~ $plant->[1] } @found), $plant->[0]) or diag "expected $plant->[1] among\n", join "\n", @found[0 .. ($#found > 9 ? 9 : $#found)];
    }
}

# A row that nobody has damaged yet: its columns.
sub row
{
    my ($columns, $from) = @_;
    my ($row) = grep { !$used{ $_->[0] } } $t->rows("select $columns from $from order by 1");

    $used{ $row->[0] } = 1;
    return @$row;
}

my $person = sub { return row('id', 'affiliate.click c where verdict = 0 and exists (select from affiliate.conversion v where v.click_id = c.id)') };
my $robot = sub { return row('id', 'affiliate.click where verdict = 5') };
my $clicked = sub { my ($id, $set) = @_; return "update affiliate.click set $set where id = '$id'" };
my $copied = sub {
    my ($id, $change) = @_;
    return "create temp table kept on commit drop as select * from affiliate.click where id = '$id'; update kept set $change; "
        . 'insert into affiliate.click select * from kept; drop table kept';
};
my $later = "id = (substr(id::text, 1, 24) || '000000000000')::uuid";
my ($click) = $person->();
my ($bot) = $robot->();
my ($other) = $robot->();

plant('a click that is gone', qr/^click \S+ \Q$click\E, was answered at .* and is missing/, "delete from affiliate.click where id = '$click'");
plant('one that got no click_id', qr/^click \S+ (?:bot|nobody), was answered at .* and is missing/, "delete from affiliate.click where id = '$bot'");
plant('a click of another time', qr/^click \S+, \S+: its time is/, $clicked->($other, "id = affiliate.day_bound('yesterday'::date)"));
($click) = $person->();
plant('a click that is there twice', qr/^click \S+ is there twice: .*\Q$click\E/, $copied->($click, $later));
plant('a click that nobody made', qr/^click \S+ \(forged\) is there, and was never sent/,
    $copied->($person->(), "$later, sub_ids = '{\"\",\"\",\"\",\"\",forged}'"));
($click) = $person->();
plant('a click under another id', qr/^click \S+ is there as \S+-000000000000, was answered as \Q$click\E/, $clicked->($click, $later));
for my $change (['verdict', 'verdict = 1'], ['reasons', 'reasons = 64'], ['link', 'link_id = link_id % 9 + 1'], ['affiliate', 'affiliate_id = affiliate_id + 1'],
    ['livemode', 'livemode = not livemode'], ['address', "address_prefix = '10.0.0.0/24'"], ['agent', "user_agent = 'x'"],
    ['campaign', 'campaign_id = 99'], ['signals', "signals = 'a=1'"], ['referrer', "referrer = 'http://evil.example'"], ['subs', 'sub_ids[1] = \'forged\''])
{
    ($click) = $person->();
    plant("a click's $change->[0]", qr/^click \S+, \Q$click\E: $change->[0] is/, $clicked->($click, $change->[1]));
}
($click) = $person->();
plant('two in one visitor', qr/^click \S+, \S+: visitor 7 is also/, "update affiliate.click set visitor = 7 where id in ('$click', '@{[ $person->() ]}')");
found();

my $column = qq{c.conversion_id, c.merchant_id || '/' || left(c.livemode::text, 1) || '/' || c.idempotency_key || '/' || c.position};
my $single = 'affiliate.conversion c where c.source = 1 and ';
my $damaged = sub {
    my ($name, $says, $set, $where) = @_;
    my ($id, $key) = row($column, $single . ($where || 'c.status = 2 and c.item_sku is null'));
    plant($name, qr/^conversion \Q$key\E\b$says/, $set =~ /^delete/ ? "delete from affiliate.conversion where conversion_id = $id"
        : "update affiliate.conversion set $set where conversion_id = $id");
};

$damaged->('a conversion that is gone', ' was answered 20[02] .* and is missing', 'delete');
for my $change (['amount', 'amount_minor = amount_minor + 1'], ['order', "order_id = order_id || 'x'"], ['status', 'status = 1'], ['currency', "currency = 'USDX'"],
    ['source', 'source = 9'], ['key', "key_id = 'ak_live_x'"], ['customer', 'customer = customer + 1'], ['waiting', 'waiting = true'],
    ['click', "click_id = '$bot'"], ['affiliate', 'affiliate_id = 99'], ['verdict', 'verdict = verdict + 1'], ['click_problem', "click_problem = 'unknown_click'"],
    ['effective', "effective_at = effective_at + interval '1 ms'"], ['clicked', "clicked_at = clicked_at + interval '1 ms'"],
    ['occurred', "occurred_at = 'epoch'"], ['reason', "reason = 'x'"], ['refund', "refund_key = 'r:x'", "c.refund_key like 'r:%'"],
    map { [$_->[0], $_->[1] . "[1] = $_->[2]", 'cardinality(c.item_amount) > 0'] } ['amounts', 'item_amount', 1234567], ['skus', 'item_sku', "'x'"],
    ['quantities', 'item_quantity', 99])
{
    $damaged->("an event's $change->[0]", ": $change->[0] is", @$change[1, 2]);
}
$damaged->("an event's reception", ': received at \d+, when it was not on its way', "received_at = received_at - interval '1 minute'");
$damaged->('an event of another body', ', body .*, is there, and was never sent so', "body_hash = '\\x00'");
$damaged->('an event at another position', ' was answered 20[02] .* and is missing', 'position = 7');
$damaged->('an event under another key', ' was answered 20[02] .* and is missing', "idempotency_key = 'forged'");
plant('which nobody sent', qr{^conversion \S+/forged/0, body .* was never sent so}, 'select where false');
$damaged->('an event of the other mode', ' was answered 20[02] .* and is missing', 'livemode = not livemode');
plant('a dead letter', qr/^dead letter \d+: invalid_record/, 'insert into affiliate.dead_letter (channel, spool_id, segment, sequence, record, reason) values '
    . "(2, 1, 1, 1, 0, 'invalid_record')");
plant('one more that waits', qr/^1 conversions wait for their click, should be 0/, 'insert into affiliate.waiting (merchant_id, livemode, order_id, conversion_id, '
    . "click_id, until, next_at) values (1, true, 'x', 1, '$bot', now(), now())");
found();

my $spoiled = sub {
    my ($name, $says, $set, $where) = @_;
    my ($key, $merchant, $no) = row(q{merchant_id || '/' || order_id || '/' || left(livemode::text, 1), merchant_id, order_no}, 'affiliate.order_fact where '
        . ($where || 'amount_minor > 100 and outcome = \'accepted\' and posted_commission_minor > 0 and approved_at is not null'));
    plant($name, qr/^order \Q$key\E: (?:.*, )?$says/, ($set eq 'delete' ? 'delete from affiliate.order_fact' : "update affiliate.order_fact set $set")
        . " where merchant_id = $merchant and order_no = $no");
};

$spoiled->('an order that is gone', 'is missing', 'delete');
for my $change (['outcome', "outcome = 'review'"], ['problem', "problem = 'suspect_click'"], ['amount', 'amount_minor = amount_minor + 1'],
    ['refunded', 'refunded_minor = refunded_minor + 1'], ['approved', "approved_at = approved_at + interval '1 ms'"], ['cancelled', 'cancelled_at = approved_at'],
    ['returned', 'returned_at = approved_at'], ['reported', "reported_at = reported_at + interval '1 ms'"], ['affiliate', 'affiliate_id = 99'],
    ['terms', 'terms_id = 99'], ['commission', 'posted_commission_minor = posted_commission_minor - 1'], ['fee', 'posted_fee_minor = posted_fee_minor + 1'],
    ['click_id', "click_id = '$bot'"], ['currency', "currency = 'EUR'"])
{
    $spoiled->("an order's $change->[0]", "$change->[0] is", $change->[1]);
}
$spoiled->('money that became payable too early', 'payable is 1', 'posted_payable = true', "outcome = 'review' and posted_commission_minor > 0");
my ($from) = row('account_id', "affiliate.account where owner = 'affiliate' and merchant_id = 1 and credits_minor > debits_minor");
my ($to) = row('account_id', "affiliate.account where owner = 'affiliate' and merchant_id = 1 and credits_minor > debits_minor");
plant('money that is in another account', qr{^account 1/affiliate/\S+: balance is}, 'update affiliate.account set '
    . "credits_minor = credits_minor + case account_id when $to then 1 else -1 end where merchant_id = 1 and account_id in ($from, $to)");
plant('a transfer that is gone', qr/^audit: account is the sum of its transfers/, 'delete from affiliate.transfer where code = 1');
found();

is(join("\n", $auditor->differences($reader)), '', 'each of them was rolled back');

# --- in the journals -------------------------------------------------------------------------------------------------

my $journal = $t->path('traffic-1.journal');
my $text = $t->slurp($journal);

# What the auditor says of the first client's journal when it is changed so.
sub says
{
    my ($change, %o) = @_;
    my $changed = $text;

    $change->(local $_ = $text);
    $t->write($journal, $_);
    my @found = Affiliated::Auditor->new(%auditor, %o)->differences($reader);
    $t->write($journal, $text);
    return @found;
}

sub told { my ($name, $pattern, $change, %o) = @_; my @found = says($change, %o); ok(scalar(grep { $_ =~ $pattern } @found), $name)
    or diag join "\n", 'it says:', @found[0 .. ($#found > 9 ? 9 : $#found)] }

my $id = qr/affiliate_click_id=[0-9a-z]{39}|ref=[0-9a-z]{39}/;
told('a redirect without its click_id', qr/^click .* human: got no click_id/, sub { s/^(c\t\d+\t\S+\t\d\t\d+\thuman.*\nC\t.*)[?&]$id/$1/m });
told('a redirect elsewhere', qr/^click .*: leads to .*evil/, sub { s{^(C\t.*\t302\thttp://)shop}{$1evil}m });
told('a link that is not known', qr/^click .*: was answered 404/, sub { s/^(C\t\d+\t\S+\t)302\t.*/${1}404\t/m });
told('a click_id for a bot', qr/^click .*: leads to/, sub { s/^(c\t\d+\t\S+\t\d\t\d+\t)human(.*\nC\t.*$id)/$1bot$2/m });
told('a call that was refused', qr/^call .*: was answered 401 bad_signature/, sub { s/^(T\t\d+\t\d+\t\S+\t)202\t/${1}401\tbad_signature/m });
told('a replay of nothing', qr/^call .*: is said to be replayed, and was/, sub { s/^(T\t\d+\t\d+\t\S+\t)202\t\t0/${1}200\t\t1/m });
told('what should be refused', qr/^call .*: was answered 202 , should be refused/, sub { s/^(T\t\d+\t\d+\t\S+\t)422\tvalidation/${1}202\t/m });
told('a result that is none', qr/^call .*: results are/, sub { s/^(T\t\d+\t\d+\t\S+\t202\t\t0\t)202/${1}503/m });
told('an event of another amount', qr/^conversion .* is there, and was never sent so/, sub { s/^(e\t.*?"amount":")\d/${1}12/mg });
told('a call that was given up', qr/^call .* was never answered/, sub { s/^(T\t(\d+)\t\d+\t\S+\t)202\t.*/${1}0\t\t0\t\ng\t$2/m });
told('a journal that breaks off', qr/traffic-1\.journal does not end/, sub { $_ = substr $_, 0, length($_) / 2 });
told('an error where nothing was broken', qr/^click .*: was answered 503, and nothing was broken/, sub { s/^(C\t\d+\t\S+\t)302\t.*/${1}503\t/m }, strict => 1);

# Unanswered, it may be there.
is(join("\n", says(sub { s/^(C\t\d+\t\S+\t)302\t.*/${1}0\t/mg; s/^(T\t\d+\t\d+\t\S+\t)202\t.*/${1}0\t\t0\t/mg })), '', 'what was not answered may be there');
my $recount = 'select affiliate.recount_clicks(min(day), max(day)) from affiliate.click_partitions()';
$t->psql("set session_replication_role = replica; create table public.kept as select * from affiliate.click where id = '$bot'; "
    . "delete from affiliate.click where id = '$bot'; $recount");
my ($tag) = $t->value('select sub_ids[5] from public.kept') =~ /^traffic-(\d+-\d+)$/;
my ($client, $number) = split /-/, $tag;
$journal = $t->path("traffic-$client.journal");
$text = $t->slurp($journal);
is(join("\n", says(sub { s/^(C\t$number\t\S+\t)302\t.*/${1}0\t/m })), '', 'or not');
$t->psql('set session_replication_role = replica; insert into affiliate.click select * from public.kept; ' . $recount);

# A body that lost against another one under its key, and was accepted, is a dead letter.
my ($line) = $text =~ /^(e\t\d+\t\d\tsingle\t\S+\t\t\{"amount":.*)$/m;
(my $second = $line) =~ s/^(e\t)\d+/${1}999999/;
$second =~ s/"order_id":"/"order_id":"other-/;
told('a body that came too late, without its dead letter', qr/^call .*, body .*, was answered 202, does not count and has no dead letter/,
    sub { s/^end$/$second\nt\t999999\t1\t@{[time()]}\t0\nT\t999999\t1\t@{[time()]}\t202\t\t0\t\nend/m });

# Clocks: by a host whose clock was an hour ahead, all these times would be wrong.
$t->write('clocks.journal', "1 0 3600\n1 1 3600\n");
my @found = Affiliated::Auditor->new(%auditor)->differences($reader);
is(scalar(grep { /its time is/ } @found) > 100 && scalar(grep { /when it was not on its way/ } @found) > 100, 1, 'times are those of the host');
unlink $t->path('clocks.journal');

# What a fault destroyed is excused, and nothing else.
$t->psql("set session_replication_role = replica; delete from affiliate.click where id = '$click'");
my ($missing) = grep { /is missing/ } Affiliated::Auditor->new(%auditor)->differences($reader);
like($missing, qr/\Q$click\E/, 'a click that is gone');
$t->write('faults.journal', "1.5 corrupt destroyed click $click -\n");
is(scalar(grep { /is missing/ } Affiliated::Auditor->new(%auditor)->differences($reader)), 0, 'is excused where a fault destroyed it');

done_testing();
