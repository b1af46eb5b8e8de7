# Every t/sql/*.sql (pgTAP, a transaction each that is rolled back) on one cluster with the schema.

use strict;
use warnings;

use Affiliated::Test;

my $t = Affiliated::Test->new;
my $dir = "$Affiliated::Test::TOP/t/sql";

$t->pg_start;

for my $file (sort glob "$dir/*.sql") {
    my ($name) = $file =~ m{([^/]+)\.sql$};

    subtest $name => sub {
        my ($code, $out, $err) = $t->run($t->pg_bin . '/psql', '-XqAt', '-h', $t->{pg_socket}, '-U', 'postgres', '-d', 'affiliate', '-f', $file);
        my ($planned) = $out =~ /^1\.\.(\d+)$/m;
        my $run = 0;

        while ($out =~ /^(not )?ok \d+(?: - (.*))?((?:\n#.*)*)/mg) {
            $run++;
            ok(!$1, $2 // $run) or diag($3);
        }

        is($code, 0, 'psql succeeds') or diag($err);
        is($run, $planned, 'all of the plan ran');
    };
}

done_testing();
