# Every fuzz target over its committed seeds, under the sanitizers, and a few raw requests to nginx and a few replies of a
# hostile Redis, which t/fuzz/nginx and t/fuzz/redis make from this run's seed.

use strict;
use warnings;

use Affiliated::Test;

my $top = $Affiliated::Test::TOP;
my $t = Affiliated::Test->new;

for my $target (sort map { m{([^/]+)\.c$} } glob "$top/t/fuzz/*.c") {
    next if $target =~ /^(?:replay|make_seeds)\z/;
    my ($code, $out, $err) = $t->run("$top/build/t/replay/$target", "$top/t/fuzz/seeds/$target");
    my @seeds = $out =~ /^ok /mg;

    ok($code == 0 && @seeds > 0, "$target: " . @seeds . ' seeds') or diag($out . $err);
}

for my $script (qw(nginx redis)) {
    my ($code, $out, $err) = $t->run($^X, "-I$Affiliated::Test::TOP/t/lib", "$top/t/fuzz/$script", 0, $t->{seed});
    my ($told) = $out =~ /^# ($script: .*)/m;

    ok($code == 0 && $told, $told || $script) or diag($out . $err);
}

done_testing();
