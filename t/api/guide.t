# api/guide.md tells what api/openapi.yaml says, and that says what the schema and the sources do: who may call what, and which
# codes of problems there are.

use Affiliated::Api;

my $t = Affiliated::Api->new;
my $top = $Affiliated::Test::TOP;

# --- the guide, and the description ------------------------------------------------------------------------------------

{
    my ($code, $out, $err) = $t->run({ stdin => $t->slurp("$top/api/openapi.yaml") }, "$top/api/guide");
    is($code, 0, 'api/guide takes api/openapi.yaml') or diag $err;
    ok($out eq $t->slurp("$top/api/guide.md"), 'api/guide.md is up to date (make guide)');

    ($code, $out, $err) = $t->run('python3', '-W', 'ignore', "$top/t/lib/guide.py", "$top/api/openapi.yaml", "$top/api/guide.md");
    is($code, 0, 'both can be read') or diag $err;
    is($out, '', 'every operation is in it, with its fields, limits and codes, and examples are as their fields say');
    my $short = $t->write('short.md', $t->slurp("$top/api/guide.md") =~ s/^\| `password` .*\n//mr);
    (undef, $out) = $t->run('python3', '-W', 'ignore', "$top/t/lib/guide.py", "$top/api/openapi.yaml", $short);
    like($out, qr/^session_create: password`$/m, 'a field that is not in it is missed');
}

# What api/guide refuses.
my $spec = <<'END';
openapi: 3.1.0
info: {title: A, summary: A, description: A}
tags: [{name: a, x-title: Of a, description: A}]
paths:
  /a:
    get:
      operationId: a_show
      tags: [a]
      summary: An a
      x-actors: [merchant, key]
      x-role: owner
      x-problems: [state]
      responses: {'200': {description: It is.}, default: {}}
components:
  schemas: {}
  x-problems: {state: {status: [409], description: No.}}
END
for my $case (
    [qr/^$/ => sub { }],
    [qr/who may call it/ => sub { s/^ *x-actors: .*\n//m }],
    [qr/who may call it/ => sub { s/merchant, key/everybody/ }],
    [qr/x-role/ => sub { s/merchant, key/key/ }],
    [qr/limit is not in/ => sub { s/\[state\]/[limit]/ }],
    [qr/tag a: no x-title/ => sub { s/x-title: Of a, // }],
    [qr/two headings/ => sub { s/An a$/Of a/m }],
    )
{
    my ($wrong, $change) = @$case;
    local $_ = $spec;
    $change->();
    my ($code, $out, $err) = $t->run({ stdin => $_ }, "$top/api/guide");
    like($err, $wrong, "api/guide: $wrong");
    is($code, $err eq '' ? 0 : 1, 'its exit code');
}

# --- the description, and the schema ---------------------------------------------------------------------------------------

# operationId => what is said of it.
my $dump = 'import json, sys, yaml; s = yaml.safe_load(open(sys.argv[1])); '
    . 'json.dump({"default": s["security"], "problems": s["components"]["x-problems"], '
    . '"operations": {o["operationId"]: o for i in s["paths"].values() for m, o in i.items() if m != "parameters"}}, sys.stdout)';
my (undef, $described) = $t->run('python3', '-c', $dump, "$top/api/openapi.yaml");
$described = JSON::PP::decode_json($described);
my $operations = $described->{operations};

# What C does alone.
my %native = map { $_ => '{nobody}' } qw(health_show session_create time_show);

$t->pg_start;
my %rights = map { $_->[0] => $_ } $t->rows(q{
    select operation, actors, case when 'merchant' = any (actors) then role else 'read_only' end, approved, while_suspended, by_mode
      from affiliate.api_operation order by 1});

{
    my (@wrong, @keys);

    for my $name (sort keys %$operations) {
        my $o = $operations->{$name};
        my $said = join ' ', '{' . join(',', @{ $o->{'x-actors'} }) . '}', $o->{'x-role'} || 'read_only',
            map { $_ ? 't' : 'f' } @$o{qw(x-approved x-while-suspended x-by-mode)};
        my $is = $native{$name} ? "$native{$name} read_only f f f" : join ' ', @{ $rights{$name} || [] }[1 .. 5];
        my $by_key = grep { $_->{key} } @{ $o->{security} || $described->{default} };
        push @wrong, "$name: $said, not $is" if $said ne $is;
        push @keys, $name if $by_key xor grep { $_ eq 'key' } @{ $o->{'x-actors'} };
    }
    cmp_ok(scalar keys %$operations, '>', 150, 'there are operations');
    is("@wrong", '', 'who may call each is what affiliate.operation() says') or diag join "\n", @wrong;
    is("@keys", '', 'a key may sign what a key may call');
}

# --- limits, as the introduction tells them ----------------------------------------------------------------------------------

{
    $t->daemon_conf;
    my (undef, $settings) = $t->cli('-T');
    my ($intro) = $t->slurp("$top/api/guide.md") =~ /^(.*?)^## Operations$/ms;
    my %is = map { $_ => $settings =~ /^#?$_ = (\S+)$/m } qw(rate rate_address rate_login rate_registration statement_timeout export_timeout
        max_body max_upload);
    my ($idle, $absolute, $kept) = @{ ($t->rows('select extract(epoch from session_idle) / 60, extract(epoch from session_absolute) / 3600,
        extract(epoch from answers_for) / 3600 from affiliate.people_policy'))[0] };
    my %limit = map { /define\s+(\w+)\s+(\d+)/ ? ($1 => $2) : () } map { split /\n/ } map { $t->slurp("$top/worker/api/$_") }
        qw(request.h csv.h upload.c);

    $intro =~ s/\s+/ /g;
    for my $told (
        "$is{rate} calls a minute", "without either $is{rate_address}", "Logins: $is{rate_login} in ten minutes", "mails: $is{rate_registration} an hour",
        'at most ' . $is{statement_timeout} =~ s/s/ seconds/r, 'CSV for ' . $is{export_timeout} =~ s/m/ minutes/r,
        'JSON bodies have at most ' . $is{max_body} =~ s/k/ KiB/r, $is{max_upload} =~ s/m/ MiB/r . ' in all', "and $limit{REQUEST_DEPTH_MAX} levels",
        "path and query $limit{REQUEST_TARGET_MAX} bytes", "$limit{REQUEST_QUERY_MAX} parameters of $limit{REQUEST_VALUE_MAX} bytes",
        $limit{UPLOAD_ROWS_MAX} =~ s/(?<=\d)(?=(?:\d{3})+$)/ /gr . ' rows', "$limit{CSV_COLUMNS_MAX} columns", $limit{CSV_CELL_MAX} / 1024 . ' KiB a cell',
        sprintf('%d minutes after it was last used', $idle), sprintf('after %d hours in any case', $absolute), sprintf('for %d hours', $kept),
        )
    {
        ok(index($intro, $told) >= 0, "the introduction tells: $told");
    }
}

# --- codes -------------------------------------------------------------------------------------------------------------------

# Functions of the schema, and what each calls.
my %source;
$source{ $_->[0] } .= "\n$_->[1]" for $t->rows(q{
    select proname, replace(replace(prosrc, chr(10), ' '), chr(9), ' ') from pg_proc where pronamespace = 'affiliate'::regnamespace});

sub codes_of
{
    my @left = @_;
    my (%seen, %codes);

    while (defined(my $name = pop @left)) {
        next if $seen{$name}++ || !exists $source{$name};
        push @left, $source{$name} =~ /affiliate\.(\w+)\(/g;
        $codes{$_} = 1 for $source{$name} =~ /problem\(\d+, '(\w+)'/g;
    }
    return \%codes;
}

# order_report() says order_ and the word of judge_said(), if said_field() knows no field for it.
my @order = map { "order_$_->[0]" } $t->rows(q{
    select c from (values ('waiting'), ('unknown'), ('currency'), ('refund'), ('cancelled'), ('returned'), ('rejected'), ('future')) v(c)
     where affiliate.said_field(c) is null and c <> 'unknown' order by 1});

# Of any operation, and of any with its header; and what C says of bodies, which needs no word at each operation.
my %general = map { $_ => 1 } qw(not_found forbidden precondition_failed in_flight);
my %of_c = (
    session_create => [qw(totp_required too_many_attempts)],
    map { $_ => [qw(malformed_csv too_many_rows)] } qw(import_create order_import_create payout_result_create reconciliation_create),
);

# Its function can tell, but only when another operation calls it.
my %never = map { $_ => { site_unverified => 1 } } map { "admin_merchant_$_" } qw(activate reject suspend);

{
    my @wrong;

    for my $name (sort keys %$operations) {
        my $codes = codes_of($name eq 'session_create' ? 'login_end' : "api_$name", "api_${name}_rows", "api_${name}_done");
        if (delete $codes->{order_}) {
            $codes->{$_} = 1 for @order;
        }
        $codes->{$_} = 1 for @{ $of_c{$name} || [] };
        delete @$codes{ keys %general, keys %{ $never{$name} || {} } };
        my $said = join ' ', @{ $operations->{$name}{'x-problems'} || [] };
        push @wrong, "$name: $said, not " . join ' ', sort keys %$codes if $said ne join ' ', sort keys %$codes;
    }
    is("@wrong", '', 'the codes of each operation are those that its functions raise') or diag join "\n", @wrong;
}

{
    my $sql = join '', map { $t->slurp($_) } glob "$top/sql/*.sql";
    my $c = join '', map { $t->slurp($_) } glob "$top/worker/api/*.c";
    my %found;

    $found{$2}{$1} = 1 while $sql =~ /problem\((\d+), '(\w+)'[,)]/g;
    $found{$2}{$1} = 1 while $c =~ /\b([45]\d\d), "([a-z_]+)"/g;
    delete $found{order_};
    $found{$_}{409} = 1 for @order;
    $found{$_}{403} = 1 for qw(rejected suspended);     # check_standing()
    $found{malformed_request}{431} = 1;                 # api.c chooses
    my %is = map { $_ => join ' ', sort keys %{ $found{$_} } } keys %found;
    my %said = map { $_ => join ' ', sort @{ $described->{problems}{$_}{status} } } keys %{ $described->{problems} };
    is_deeply(\%said, \%is, 'components/x-problems has every code of the sources, with its status');
}

done_testing();
