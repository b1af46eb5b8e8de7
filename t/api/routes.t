# The OpenAPI file, the routes made of it, and the operations of the schema are of one mind.

use Affiliated::Api;

my $t = Affiliated::Api->new;
my $top = $Affiliated::Test::TOP;

{
    my ($code, $out, $err) = $t->run({ stdin => $t->slurp("$top/api/openapi.yaml") }, "$top/api/routes");
    is($code, 0, 'api/routes takes api/openapi.yaml') or diag $err;
    is($out, $t->slurp("$top/worker/api/routes.c"), 'worker/api/routes.c is up to date (make routes)');
}

# What api/routes refuses.
my $spec = <<'END';
openapi: 3.1.0
paths:
  /a/{x}:
    get:
      operationId: a_show
      tags: [a]
      summary: A
      parameters: [{name: x, in: path, required: true, schema: {}}]
      responses: {default: {}}
END
for my $case (
    [qr/operationId/ => sub { s/a_show/A-show/ }],
    [qr/no default/ => sub { s/default/'200'/ }],
    [qr/no tag/ => sub { s/tags: .*/tags: []/ }],
    [qr/not those that are described/ => sub { s/name: x/name: y/ }],
    [qr/can be no field/ => sub { s/parameters: \[/parameters: [{name: _y, in: query}, / }],
    [qr/can be no field/ => sub { s/parameters: \[/parameters: [{name: all, in: query}, / }],
    [qr/x is there twice/ => sub { s/parameters: \[/parameters: [{name: x, in: query}, / }],
    [qr/x-speed means nothing/ => sub { s/summary: A/summary: A\n      x-speed: 1/ }],
    [qr/alphabetical/ => sub { s/$/\n  \/a: {}\n/ }],
    [qr/x-columns/ => sub { s/summary: A/summary: A\n      x-columns: ["a'b"]/ }],
    )
{
    my ($wrong, $change) = @$case;
    local $_ = $spec;
    $change->();
    my ($code, $out, $err) = $t->run({ stdin => $_ }, "$top/api/routes");
    is($code, 1, 'refused');
    like($err, $wrong, "because: $wrong");
}

# The schema: `check` looks that each route has its operation; here is the other way round.
$t->pg_start;
$t->redis_start;
$t->daemon_conf(conf => { run => { roles => 'partitions, api' }, api => { socket => $t->path('state/api.sock'), temp_path => '/tmp' } });
my ($code, $out, $err) = $t->cli('check');
like($out, qr/^ok    API: the schema has all operations of \d+ routes$/m, 'check finds each operation') or diag $out;
like($out, qr/^ok    API: its login may call it$/m, 'and that it may be called');
my %routed = map { $_ => 1 } $t->slurp("$top/worker/api/routes.c") =~ /"[A-Z]+", "[^"]+", "(\w+)"/g;
my @lost = grep { !$routed{$_} && !$routed{s/_(?:rows|done)$//r} } map { $_->[0] } $t->rows('select operation from affiliate.api_operation order by 1');
is("@lost", '', 'each operation has its route');

done_testing();
