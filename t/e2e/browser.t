# A person's browser: headless Chromium follows the link and shows the shop's page with the click_id on it.

use Affiliated::Test;

my ($chromium) = grep { -x } map { ("$_/chromium", "$_/chromium-browser", "$_/google-chrome") } split /:/, $ENV{PATH};

plan skip_all => 'Chromium is not installed' unless $chromium;

my $t = Affiliated::Test->new;
my $page = <<'END';
        location /shop {
            default_type text/html;
            return 200 '<!doctype html><title>Shop</title><p id=uri>$request_uri</p><p id=click>$arg_affiliate_click_id</p><p id=cookie>[$http_cookie]</p>';
        }
        location = /page {
            default_type text/html;
            return 200 '<!doctype html><title>Blog</title><img src=/r/%%CODE%%><p>$uri</p>';
        }
END
# Headless Chromium declares itself, and is a bot then.
my $person = '--user-agent=Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36';
my $w;

# What the browser shows in the end.
sub browse
{
    my ($url, @more) = @_;
    my ($code, $out, $err) = $t->run({ env => { HOME => $t->path('home') } }, 'timeout', '90', $chromium, '--headless',
        '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--no-first-run', '--disable-background-networking',
        '--user-data-dir=' . $t->path('home/profile'), @more, '--virtual-time-budget=5000', '--dump-dom', $url);

    return $out;
}

mkdir $t->path('home');
$t->redis_start;
$t->pg_start;
$t->daemon_start;
$w = $t->world(url => "http://127.0.0.1:@{[ $t->{port} = $t->port ]}/shop/tea?size=1#top");
$page =~ s/%%CODE%%/$w->{link}/g;
$t->nginx_start(server => $page);
$t->wait_until('the link is known', sub { $t->head("/r/$w->{link}")->{status} == 302 });

my $url = "http://127.0.0.1:$t->{port}";
my $dom = browse("$url/r/$w->{link}", $person);
my ($id) = $dom =~ m{<p id="click">([0-9a-z]{39})</p>};

ok($id, 'the shop shows a click_id') or diag $dom;
like($dom, qr{<p id="uri">/shop/tea\?size=1&amp;affiliate_click_id=$id</p>}, 'behind what the link has, before its fragment')
    if $id;
like($dom, qr{<p id="cookie">\[\]</p>}, 'no cookie came with it');

SKIP: {
    skip 'without a click_id', 3 unless $id;

    my $uuid = $t->uuid_of($id);
    ok($t->wait_until('the click is in PostgreSQL', sub { $t->value("select count(*) from affiliate.click where id = '$uuid'") }),
        'the click is in PostgreSQL');
    is($t->value("select verdict from affiliate.click where id = '$uuid'"), 0, 'as valid: a browser is no bot');
    is($t->call($w->{key}, { click_id => $id, order_id => 'B-1', status => 'approved', amount => '10.00', currency => 'NPR' })
            ->{status}, 202, 'and the shop can report an order on it');
}

# An image that points to a link is no navigation: the browser says so, and no click_id is spent on it.
my $before = $t->value('select count(*) from affiliate.click where verdict = 0');
browse("$url/page", $person);
ok($t->wait_until('the image is recorded', sub {
    $t->value('select count(*) from affiliate.click where reasons & ' . (1 << 5) . ' <> 0') > 0;
}), 'a link in an image is recorded as no navigation');
is($t->value('select count(*) from affiliate.click where verdict = 0'), $before, 'and not as a valid click');

$dom = browse("$url/r/$w->{link}");
like($dom, qr{<p id="uri">/shop/tea\?size=1</p>}, 'a browser that says it is headless reaches the shop, without a click_id');

done_testing();
