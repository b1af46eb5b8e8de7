# The merchants' examples: each signs the documented vector, and reports an order to a real nginx.

use Affiliated::Test;

my $t = Affiliated::Test->new;
my $examples = "$Affiliated::Test::TOP/conf.examples/merchant";
my $vector = '499c1b6f2d1c1ba9f751fd94225c81abefdd27e2934561e6d58d3dbdb084d857';
my @languages = (
    [sh => 'sh', 'sign.sh'],
    [php => 'php', 'sign.php'],
    [python => 'python3', 'sign.py'],
    [node => 'node', 'sign.mjs'],
);

$t->redis_start;
$t->nginx_start;

my $key = $t->api_key(livemode => 0);

for my $language (@languages) {
    my ($name, $program, $file) = @$language;
    my ($found) = grep { -x } map { "$_/$program" } split /:/, $ENV{PATH};

    subtest $name => sub {
        plan skip_all => "$program is not installed" unless $found;

        my $order = "NP-$name";
        my %env = (
            AFFILIATE_URL => "http://127.0.0.1:$t->{port}/v1/conversions",
            AFFILIATE_KEY => $key->{id},
            AFFILIATE_SECRET => $key->{secret},
        );
        my $body = JSON::PP->new->canonical->encode({
            click_id => $t->click_id(livemode => 0), order_id => $order, status => 'approved', amount => '1250.50',
            currency => 'NPR', reason => "caf\x{e9}" });
        utf8::encode($body);

        my ($code, $out, $err) = $t->run($found, "$examples/$file", '--vector');
        is($out, "$vector\n", 'signs the vector') or diag $err;

        ($code, $out, $err) = $t->run({ env => \%env }, $found, "$examples/$file", "$order-approved", $body);
        is($code, 0, 'the order is accepted') or diag "$out$err";
        like($out, qr/^202$/m, 'with 202');

        ($code, $out, $err) = $t->run({ env => \%env }, $found, "$examples/$file", "$order-approved", $body);
        is($code, 0, 'sent again it is replayed') or diag "$out$err";
        like($out, qr/^200$/m, 'with 200');

        ($code, $out, $err) = $t->run({ env => { %env, AFFILIATE_SECRET => 'aks_test_wrong' } }, $found, "$examples/$file",
            "$order-wrong", $body);
        is($code, 1, 'a wrong secret is told');
        like($out, qr/^401\n.*bad_signature/ms, 'with the reason');
    };
}

done_testing();
