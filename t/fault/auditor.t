# The auditor of these tests sees what it is there to see: a click or an event that is lost, doubled or changed.

use Affiliated::Test;
use Affiliated::Load;

my $load = Affiliated::Load->begin(clients => 2);
my $t = $load->{t};

sub finds
{
    my ($pattern, $name) = @_;
    my @problems = $load->problems;

    ok(scalar(grep { $_ =~ $pattern } @problems), $name) or diag join "\n", 'it says:', @problems;
}

$load->start;
sleep 3;
$load->stop;
is(join("\n", $load->settle), '', 'nothing is wrong at first');

my $journal = $load->journal;
my ($click) = sort keys %{ $journal->{clicks} };
my ($event) = sort { $a->{key} cmp $b->{key} } values %{ $journal->{events} };

# --- in the database -------------------------------------------------------------------------------------------------

my $rows = 'create table public.kept as select * from affiliate.click where id = \'%s\'; set session_replication_role = replica; delete from affiliate.click where id = \'%1$s\'';
$t->psql(sprintf $rows, $click);
finds(qr/click \Q$click\E is there 0 times/, 'a click that is gone');
$t->psql('set session_replication_role = replica; insert into affiliate.click select * from public.kept');
$t->psql("set session_replication_role = replica; insert into affiliate.click select (substr(id::text, 1, 24) || '000000000000')::uuid, merchant_id, link_id, campaign_id, "
    . 'affiliate_id, livemode, verdict, reasons, address_prefix, visitor, sub_ids, signals, user_agent, referrer from public.kept');
finds(qr/1 clicks more than were asked for/, 'a click that nobody asked for');
$t->psql("set session_replication_role = replica; delete from affiliate.click where id::text like '%-000000000000'");
is(join("\n", $load->problems), '', 'nothing is wrong any more');

$t->psql("set session_replication_role = replica; update affiliate.conversion set amount_minor = amount_minor + 1 "
    . "where idempotency_key = '$event->{key}'");
finds(qr/conversion \Q$event->{key}\E .* expected/, 'an event of another amount');
$t->psql("set session_replication_role = replica; delete from affiliate.conversion where idempotency_key = '$event->{key}'");
finds(qr/event \Q$event->{key}\E .* is not there/, 'an event that is gone');
finds(qr/^audit: /, 'of which the audit knows, too');

# --- on the way: what only the spool held is lost with it --------------------------------------------------------------

$t->daemon_stop;
$load->start;
sleep 1.5;
$load->stop;
$t->nginx_kill;
my @files = glob $t->path('spool/*');
cmp_ok(scalar @files, '>=', 2, 'the spool holds what PostgreSQL has not got');
unlink @files;
$t->redis_restart(wipe => 1);
$t->nginx_start;
$t->daemon_start;
ok($t->wait_until('the link is known', sub { $t->get("/r/$load->{world}{link}")->{status} == 302 }), 'all is up again');
sleep 3;
my @lost = grep { /^(?:click|event) .* (?:is there 0 times|is not there)/ } $load->problems;
cmp_ok(scalar @lost, '>', 50, 'a deleted spool is noticed');

done_testing();
