# Campaigns, products and links over HTTP: a merchant makes a campaign and uploads products, an affiliate finds, joins and makes links.

use Affiliated::Api;

my $t = Affiliated::Api->new;

$t->redis_start;
$t->api_start;
my $admin = $t->person(admin => 1, name => 'Admin');
my $merchant = $t->person(name => 'Maya');
my $asha = $t->person(name => 'Asha');
my $shop = $t->value(q{select m ->> 'merchant' from affiliate.merchant_create('{"name": "Tea shop", "host": ["shop.example", "*.shop.example"]}') m});
my $asha_id = $t->value(q{select a ->> 'affiliate' from affiliate.affiliate_create('{"name": "Asha reviews"}') a});
$t->psql("insert into affiliate.member (merchant_id, user_id, role) values ($shop, $merchant->{user}, 'owner');"
        . "update affiliate.affiliate set user_id = $asha->{user} where affiliate_id = $asha_id");

# --- a campaign --------------------------------------------------------------------------------------------------------------------------

my $r = $merchant->post("/merchants/$shop/campaigns", { name => 'Teas', currency => 'NPR', joining => 'approval', categories => ['food'],
    description => "Fine teas\nfrom Ilam", terms => { rate_percent => '7.5', hold_days => 14, product_rates => [{ category => 'Cups', rate_flat => '10' }] } });
is(problem($r), 201, 'a campaign');
my $campaign = $r->{json}{campaign};
my $base = "/merchants/$shop/campaigns/$campaign";
like($r->{headers}{location}, qr{/merchants/$shop/campaigns/$campaign$}, 'where it is');
is($r->{json}{terms}{rate_percent}, '7.50', 'its rate');
is(problem($merchant->patch($base, { rules => 'No spam' }, headers => [['If-Match', '"9"']])), '412 precondition_failed', 'another version');
is($merchant->patch($base, { rules => 'No spam' }, headers => [['If-Match', $r->{headers}{etag}]])->{json}{rules}, 'No spam', 'changed');
is(problem($merchant->post("$base/terms", { rate_percent => 101 })), '422 invalid_field', 'more than all');
is(problem($merchant->post("$base/creatives", { title => 'Hot', body => 'Tea!', language => 'ne' })), 201, 'a text');
is(problem($asha->get("/affiliate/campaigns/$campaign")), '404 not_found', 'no draft for affiliates');
is($merchant->post("$base/activate")->{json}{state}, 'active', 'active');
is($merchant->get("$base/terms")->{json}{data}[0]{product_rates}[0]{rate_flat}, '10.00', 'versions of terms');
like($merchant->get("/merchants/$shop/campaigns?format=csv")->{body}, qr/^campaign,name,state.*\r\n$campaign,Teas,active,approval,NPR/, 'campaigns as CSV');
is(problem($admin->put("/merchants/$shop/network-fee", { fee_percent => '15' })), 200, 'a fee');
is(problem($merchant->put("/merchants/$shop/network-fee", { fee_percent => '0' })), '403 forbidden', 'which is not the merchant\'s to set');

# --- products ----------------------------------------------------------------------------------------------------------------------------

sub upload
{
    my ($csv, $query, %o) = @_;
    return $merchant->post("/merchants/$shop/imports" . ($query ? "?$query" : ''), undef, raw => $csv, type => 'text/csv', %o);
}
my $csv = "\xef\xbb\xbfid;title;link;price;product_type;gtin\r\n" . join '',
    map { "T$_;\"Tea; no. $_\";https://www.shop.example/tea/$_;" . ($_ == 7 ? 'seven' : "$_.50 NPR") . ";Food > Tea;1\r\n" } 1 .. 4500;

$r = upload($csv, 'dry_run=true');
is(problem($r), 201, 'a dry run');
is("@{$r->{json}}{qw(lines created refused)}", '4500 4499 1', 'what would be');
is_deeply($r->{json}{problems}, [{ line => 8, column => 'price', value => 'seven', rule => 'must be a price, like 1250.50 NPR' }], 'and what not');
is_deeply($r->{json}{ignored_columns}, ['gtin'], 'what it does not know');
is(scalar @{ $merchant->get("/merchants/$shop/products")->{json}{data} }, 0, 'nothing is stored');
$r = upload($csv, '', key => 'file-1');
is("@{$r->{json}}{qw(lines created refused)}", '4500 4499 1', 'uploaded');
is($r->{json}{state}, 'done', 'to its end');
{
    my $again = upload($csv, '', key => 'file-1');
    is_deeply($again->{json}, $r->{json}, 'again, the same answer');
    is($t->value("select count(*) from affiliate.import where merchant_id = $shop and not dry_run"), 1, 'of the same upload');
}
is(problem(upload("id,title\n", '')), '422 invalid_field', 'columns that are missing');
is(problem(upload('', '')), '422 malformed_csv', 'no header');
is(problem(upload("id,title,link,price\nA,\"open\n", 'dry_run=true')), '422 malformed_csv', 'a quote without end');
is(problem(upload("id,title,link,price\nA,\xff,x,1\n", 'dry_run=true')), '422 malformed_csv', 'no UTF-8');
is(upload("id,title,link,price\nA,x\n", 'dry_run=true')->{json}{problems}[0]{rule}, 'has 2 cells, the header 4', 'a row that is too short');
is(problem($merchant->post("/merchants/$shop/imports", { a => 1 })), '415 unsupported_media_type', 'JSON is no file');
{
    my $problems = $merchant->get("/merchants/$shop/imports/$r->{json}{import}/problems?format=csv")->{body};
    is($problems, "line,column,value,rule\r\n8,price,seven,\"must be a price, like 1250.50 NPR\"\r\n", 'the report as CSV');
}
is(join(' ', map { $_->{product} } $merchant->pages("/merchants/$shop/products?limit=4&q=tea+449")), join(' ', map { "T$_" } 449, 4490 .. 4499), 'found, page by page');
is(problem($merchant->post("/merchants/$shop/products", { product => 'a/b?', title => '=1+1', link => 'https://shop.example/x', price => '9', currency => 'NPR' })),
    201, 'a single product, with an odd id');
is($merchant->patch("/merchants/$shop/products/a%2Fb%3F", { sale_price => '8' })->{json}{sale_price}, '8.00', 'found by it');
like($merchant->get("/merchants/$shop/products?q=1&format=csv")->{body}, qr/\r\na\/b\?,'=1\+1,/, 'a formula is none in CSV');
is(problem($merchant->delete("/merchants/$shop/products/a%2Fb%3F")), 204, 'gone');
is(problem($merchant->get("/merchants/$shop/products/a%2Fb%3F")), '404 not_found', 'as one sees');
is_deeply([map { $_->{category} } $merchant->pages("/merchants/$shop/categories")], ['Food'], 'categories');

# An upload that was cut off goes on, whatever had come.
{
    my $half = $t->value("select i ->> '_upload' from (select jsonb_build_object('_upload', (affiliate.begin_product_import($shop, "
            . "row('merchant', $merchant->{user}, null, $shop, 'owner', null, null, true, 'x')::affiliate.actor, "
            . "'{\"_header\": [\"id\", \"title\", \"link\", \"price\"]}')).import_id) as i) x");
    is(problem(upload("id,title,link,price\nA,x,https://shop.example/,1 NPR\n", '')), '409 in_flight', 'one import at a time');
    $t->psql("update affiliate.import set updated_at = updated_at - interval '2 minutes' where import_id = $half");
    is(problem(upload("id,title,link,price\nA,x,https://shop.example/,1 NPR\n", 'vanished=mark')), 201, 'one that broke off is given up');
    is($t->value("select count(*) from affiliate.product where merchant_id = $shop and state = 'gone'"), 4499, 'what is not in the file is marked, if asked');
    is(problem(upload($csv, '')), 201, 'it comes back with the next');
}

# --- an affiliate ------------------------------------------------------------------------------------------------------------------------

is_deeply([map { "$_->{category} $_->{campaigns}" } grep { $_->{campaigns} } $asha->pages('/affiliate/categories')], ['food 1'], 'categories');
$r = $asha->get('/affiliate/campaigns?q=tea&category=food');
is($r->{json}{data}[0]{terms}{hold_days}, 14, 'campaigns with their terms');
ok(!exists $r->{json}{data}[0]{terms}{fee_percent}, 'but not the fee');
$r = $asha->get("/affiliate/campaigns/$campaign");
is($r->{json}{creatives}[0]{title}, 'Hot', 'one of them, with its texts');
$r = $asha->get('/affiliate/products?q=no+17&currency=NPR&sort=price&max_price=20');
is_deeply([map { $_->{product} } @{ $r->{json}{data} }], ['T17'], 'products');
is($r->{json}{data}[0]{campaigns}[0]{rate_percent}, '7.50', 'with their rates');
is(problem($asha->post('/affiliate/links', { campaign => $campaign, url => 'https://shop.example/' })), '409 state', 'no link without joining');
is($asha->post('/affiliate/memberships', { campaign => $campaign, message => 'Teas!' })->{json}{state}, 'applied', 'she asks');
is_deeply([map { "$_->{affiliate_name} $_->{message}" } $merchant->pages("$base/affiliates?state=applied")], ['Asha reviews Teas!'], 'which the merchant sees');
is($merchant->post("$base/affiliates/$asha_id/approve")->{json}{state}, 'approved', 'and allows');
$r = $asha->post('/affiliate/links', { campaign => $campaign, url => 'https://www.shop.example/tea/7?x=y', sub_ids => { sub1 => 'bio' }, code => 'asha-teas' });
is($r->{json}{short_url}, '/r/asha-teas?sub1=bio', 'a link');
is(problem($asha->post('/affiliate/links', { campaign => $campaign, url => 'https://evil.example/' })), '422 invalid_field', 'not anywhere');
is($asha->post('/affiliate/links/asha-teas/pause')->{json}{stopped_because}, 'The link is paused.', 'paused');
is($asha->post('/affiliate/links/asha-teas/resume')->{json}{leads}, JSON::PP::true, 'resumed');
is_deeply([map { "$_->{link} $_->{affiliate_name}" } $merchant->pages("/merchants/$shop/links")], ['asha-teas Asha reviews'], 'the merchant sees it');
is(problem($merchant->post("/merchants/$shop/test-links", { campaign => $campaign, url => 'https://shop.example/' })), 201, 'and makes one to try');
is(problem($admin->post("/admin/campaigns/$campaign/suspend", { reason => 'Fake' })), 200, 'an admin suspends the campaign');
is($asha->get('/affiliate/links/asha-teas')->{json}{stopped_because}, 'The campaign is suspended.', 'which stops it');
is_deeply([map { $_->{state} } $admin->pages("/admin/campaigns?state=suspended")], ['suspended'], 'as the admin sees');
is(problem($admin->post("/admin/campaigns/$campaign/resume")), 200, 'and ends');
is(problem($asha->delete('/affiliate/links/asha-teas')), 204, 'she removes it');
is(problem($asha->delete("/affiliate/memberships/$campaign")), 204, 'and leaves');
is_deeply([map { $_->{state} } $asha->pages('/affiliate/memberships')], ['left'], 'as she sees');

done_testing();
