# Every reason that the daemon and the database can give has a sentence, and every sentence a reason. The reasons are
# read from the sources: literals that SQL decides by, and those that the daemon buries records with.

use strict;
use warnings;

use Affiliated::Test;

my $t = Affiliated::Test->new;
my $top = $Affiliated::Test::TOP;
my %given;

for my $path (glob "$top/sql/*.sql") {
    my $source = $t->slurp($path);
    # fee_pending and its like are accounts, and part_paid is a bill.
    $given{$_}++ for grep { !/^fee_|^part_paid$/ } $source =~ /\b(?:then|else)\s+'([a-z]+(?:_[a-z]+)+)'/g;
}
cmp_ok(scalar keys %given, '>', 15, 'reasons in SQL');
for my $path (glob "$top/worker/*.c") {
    my $source = $t->slurp($path);
    $given{$_}++ for grep { defined } $source =~ /\bstream_bury\(\s*[^;"]*"([a-z_]+)"|\bproblem = "([a-z_]+)"/g;
}
ok($given{$_}, "found $_") for qw(bot_click idempotency_conflict unknown_click corrupt_frame forged_batch refused);

$t->pg_start;
my $list = join ', ', map { "('$_')" } sort keys %given;
is($t->psql("select r from (values $list) v(r) where affiliate.reason_sentence(r) = r"), '', 'each has a sentence');
my %told = map { $_ => 1 } $t->psql(q{select pg_get_functiondef('affiliate.reason_sentence'::regproc)}) =~ /WHEN '(\w+)'/g;
is(join(' ', sort keys %told), join(' ', sort keys %given), 'and no sentence is without a reason');
done_testing();
