# Every fuzz target over its committed seeds, under the sanitizers, and a few raw requests to nginx, which t/fuzz/nginx
# makes from this run's seed.

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

{
    my ($code, $out, $err) = $t->run($^X, "-I$Affiliated::Test::TOP/t/lib", "$top/t/fuzz/nginx", 0, $t->{seed});
    my ($told) = $out =~ /^# (nginx: .*)/m;

    ok($code == 0 && $told, $told || 'nginx') or diag($out . $err);
}

done_testing();
