# The tests of the module and of the whole path once more, on the builds with AddressSanitizer and UBSan.

use strict;
use warnings;

use Test::More;

plan skip_all => 'this run is on these builds already' if ($ENV{AFFILIATED_BUILD} || '') eq 'asan';

my ($top) = $0 =~ m{^(.*?)/?t/asan/asan\.t$};
$top = '.' if $top eq '';

$ENV{AFFILIATED_BUILD} = 'asan';
for my $file (sort glob("$top/t/module/*.t"), glob("$top/t/e2e/path.t")) {
    my $out = `$^X -I$top/t/lib $file 2>&1`;
    my @failed = $out =~ /^(\s*not ok .*)/mg;

    ok($? == 0, $file) or diag($? >> 8, ' ', join("\n", @failed) || $out);
}

done_testing();
