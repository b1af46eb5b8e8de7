# ./demo: months of history by a clock of its own, the same again from the same seed; the tour, step by step; a second start, which
# goes on from what is there; stop and reset. In a directory that has the tree's parts by links, so that nobody's run/ is touched.

use Affiliated::Test;
use JSON::PP;
use POSIX qw(strftime);

my $t = Affiliated::Test->new;
my $top = $Affiliated::Test::TOP;
my $days = 14;
my $here = $t->path('demo');
my $run = "$here/run";
my %env = (AFFILIATED_PORT => $t->port, AFFILIATED_DAYS => $days, AFFILIATED_SEED => 7);

mkdir $here or die "$here: $!";
chmod 0755, $t->{dir}, $here;
for my $path (glob "$top/*") {
    my ($name) = $path =~ m{([^/]+)$};
    symlink $path, "$here/$name" unless $name =~ /^(?:demo|run)$/;
}
$t->write('demo/demo', $t->slurp("$top/demo"));
chmod 0755, "$here/demo";

sub demo
{
    my ($code, $out, $err) = $t->run({ dir => $here, env => \%env }, './demo', @_);

    is($code, 0, "./demo @_") or diag "$out$err";
    return $out;
}

# What runs in there outlives ./demo; not this test.
END {
    if (defined $here && -d $run) {
        my $status = $?;
        system "cd '$here' && ./demo reset >/dev/null";
        $? = $status;
    }
}

sub env_of
{
    return { $t->slurp("$run/demo.env") =~ /^(\w+)='(.*)'$/mg };
}

sub ask
{
    my $sql = shift;
    my ($code, $out, $err) = $t->run('psql', '-XAtq', '-h', "$run/pg", '-U', 'postgres', '-c', $sql, 'affiliated');

    die $err if $code;
    chomp $out;
    return $out;
}

# What a seed decides: who clicked when, and what became of which order.
sub story
{
    return ask(<<'END');
select string_agg(s, E'\n' order by s)
  from (select concat_ws(' ', 'clicks', affiliate.utc_day(affiliate.click_time(id)), affiliate_id, verdict, livemode, count(*)) as s
          from affiliate.click
         where link_id not in (select link_id from affiliate.link where url like 'http:%')
         group by affiliate.utc_day(affiliate.click_time(id)), affiliate_id, verdict, livemode
         union all
        select concat_ws(' ', 'order', order_id, affiliate_id, amount_minor, outcome, problem, refunded_minor, cancelled_at is not null,
                         returned_at is not null, posted_payable, posted_commission_minor, posted_fee_minor)
          from affiliate.order_fact
         where order_id not like 'NP-%') x
END
}

# --- the first start ------------------------------------------------------------------------------------------------------

my $out = demo();
my $env = env_of();
like($out, qr/^Living through $days days, with seed 7/m, 'a history is made');
like($out, qr/^   the books hold$/m, 'the books hold');
is(sprintf('%o', (stat "$run/demo.env")[2] & 07777), '600', 'demo.env is for who started it');
like($env->{"${_}_PASSWORD"}, qr/^[0-9a-f]{24}$/, "$_ has a password, by chance") for qw(ADMIN MERCHANT AFFILIATE);

is(ask("select string_agg(distinct verdict::text, '' order by verdict::text) from affiliate.click"), '012345', 'clicks of every verdict');
is(ask("select affiliate.utc_day(min(affiliate.click_time(id))) = affiliate.utc_day(now()) - $days from affiliate.click where livemode"), 't', 'from the first day');
is(ask("select count(distinct affiliate.utc_day(affiliate.click_time(id))) >= $days from affiliate.click where livemode"), 't', 'on each day');
is(ask("select string_agg(distinct outcome, ' ' order by outcome) from affiliate.order_fact where livemode"), 'accepted rejected review', 'orders of every outcome');
is(ask('select count(*) > 0 from affiliate.order_fact where not livemode'), 't', 'and test orders');
is(ask('select count(distinct affiliate.utc_day(created_at)) > 8 from affiliate.transfer'), 't', 'the books were written as it went');
is(ask('select count(*) > 0 from affiliate.release where released_at < now() - interval \'1 day\''), 't', 'and holds ended');
is(ask('select count(*) > 0 from affiliate.hold where due_at > now() + interval \'1 day\''), 't', 'others go on');
is(ask('select count(*) from affiliate.dead_letter'), '0', 'nothing is lost on the way');
is(ask('select count(*) from affiliate.product'), '200', 'a catalogue');
is(ask('select max(greatest(at)) < now() + interval \'1 minute\' from affiliate.audit_record'), 't', 'and nothing lies ahead');

# --- the same seed, the same story ---------------------------------------------------------------------------------------------

my $story = story();
cmp_ok($story =~ tr/\n//, '>', 100, 'there is a story');
demo('stop');
unlink "$run/demo.env";    # as if the first start had broken off
like(demo(), qr/^Living through/m, 'a start that broke off is begun anew');
is(story(), $story, 'the same seed on the same day tells the same story');

# --- going on --------------------------------------------------------------------------------------------------------------------

$env = env_of();
demo('stop');
is(-e "$run/nginx.pid", undef, 'it stopped');
unlike(demo(), qr/^Living through/m, 'a second start goes on');
is_deeply([@{ env_of() }{qw(MERCHANT AFFILIATE KEY_SECRET ADMIN_PASSWORD HISTORY_CLICKS)}],
    [@$env{qw(MERCHANT AFFILIATE KEY_SECRET ADMIN_PASSWORD HISTORY_CLICKS)}], 'from what was there');

# --- the tour ----------------------------------------------------------------------------------------------------------------------

for my $time ('first', 'second') {
    my $tour = demo('tour');
    my @steps = $tour =~ /^(\d+)\. /mg;
    my $steps = () = $t->slurp("$top/t/demo/tour") =~ /^step '/mg;
    is(scalar @steps, $steps, "the $time tour goes through every step");
    is_deeply([grep { !/^HTTP (?:2..|409)$/ } $tour =~ /^   (HTTP \d+)$/mg], [], 'each answers as it should');
    like($tour, qr/^   the books hold$/m, 'and the books hold');
}
is(ask("select count(*) from affiliate.order_fact where order_id like 'TOUR-%' and refunded_minor = 25050 and posted_payable"), '2', 'its orders are payable, and refunded in part');

$out = demo('order');
like($out, qr/HTTP 202/, './demo order goes on as ever');

# --- the end -----------------------------------------------------------------------------------------------------------------------

my @pids = map { chomp(my $pid = $t->slurp($_)); $pid } glob "$run/*.pid";
cmp_ok(scalar @pids, '>=', 4, 'programs run');
demo('reset');
is_deeply([grep { ($t->run('ps', '-o', 'stat=', '-p', $_))[1] =~ /^[^Z]/ } @pids], [], 'reset stops them');
ok(!-e $run, 'and takes everything away');

done_testing();
