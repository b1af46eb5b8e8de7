# What README.md says is so: directives, variables, roles, commands and their options are those of the sources, and its
# commands run as they are printed, in their order, up to an order in the ledger.

use Affiliated::Test;

my $t = Affiliated::Test->new;
my $top = $Affiliated::Test::TOP;
my $readme = $t->slurp("$top/README.md");
my $module = $t->slurp("$top/ngx_module/ngx_http_affiliate_module.c");

sub section
{
    my $title = shift;
    my ($text) = $readme =~ /^## \Q$title\E\n(.*?)(?=^## |\z)/ms;

    die "README.md has no section \"$title\"" unless defined $text;
    return $text;
}

# The blocks of commands in a section, each a script.
sub blocks
{
    my $text = section(shift);
    my @blocks;

    while ($text =~ /((?:^(?:    .*)?\n)+)/mg) {
        my $block = $1;
        next unless $block =~ /\S/;
        $block =~ s/^    //mg;
        push @blocks, $block;
    }
    return @blocks;
}

# The one block of the section that has this in it.
sub block
{
    my ($title, $has) = @_;
    my @found = grep { /$has/ } blocks($title);

    is(scalar @found, 1, "\"$title\" has one block with $has");
    return $found[0];
}

# --- directives ---------------------------------------------------------------------------------------------------------

{
    my (%known, %said);

    while ($module =~ /\{ ngx_string\("(affiliate_\w+)"\),\s+((?:NGX_\w+\|?\s*)+),/g) {
        my ($name, $flags) = ($1, $2);
        $known{$name} = join ', ', map { $flags =~ /NGX_HTTP_$_->[0]_CONF/ ? $_->[1] : () } [MAIN => 'http'],
            [SRV => 'server'], [LOC => 'location'];
    }
    for (section('Directives') =~ /^(\| `affiliate_.*)/mg) {
        my (undef, $names, $context) = split /(?<!\\)\|/;
        $context =~ s/^\s+|\s+$//g;
        $said{$_} = $context for $names =~ /`(affiliate_\w+)/g;
    }
    cmp_ok(scalar keys %known, '>', 20, 'the module has directives');
    is_deeply(\%said, \%known, 'README has every one, and none else, each with its contexts');

    my $full = $t->slurp("$top/conf.examples/nginx-full.conf");
    is_deeply([grep { $full !~ /^\s*$_\b/m } sort keys %known], [], 'nginx-full.conf uses every one');

    my @variables = $module =~ /\{ ngx_string\("(affiliate_\w+)"\), NULL, ngx_http_affiliate_variable/g;
    my ($text) = section('Directives') =~ /^Variables.*?: (.*?)\.\n/ms;
    is_deeply([sort $text =~ /\$(\w+)/g], [sort @variables], 'and every variable');
}

# --- roles, commands, options -----------------------------------------------------------------------------------------------

{
    my @roles = map { $t->slurp($_) =~ /^const struct role_kind \w+ = \{\s*\.name = "(\w+)"/mg } glob "$top/worker/*.c $top/worker/*/*.c";
    my ($said) = section('The daemon') =~ /^.*Roles \(`(.*?)`\)/m;
    cmp_ok(scalar @roles, '>', 5, 'there are roles');
    is_deeply([sort split ' ', $said], [sort @roles], 'README has every one');

    my ($code, $help) = $t->cli('help');
    my %usage = $help =~ /^  (\S+)(.*\n(?:      \[.*\n)*)/mg;
    $usage{dead_letter} = $usage{'dead-letters'};
    my @commands = join('', blocks('The daemon')) =~ /^affiliated ([a-z][a-z-]*)/mg;
    is_deeply([grep { !$usage{$_} } @commands], [], 'README has no command that there is not');

    # What a function of the schema takes, its command's help offers.
    my $sql = join '', map { $t->slurp($_) } glob "$top/sql/*.sql";
    my ($checked, @missing) = 0;
    while ($sql =~ /^create function affiliate\.(merchant|affiliate|campaign|link|key|order|dead_letter|balance|audit)_(\w+)\(p_command.*?^\$\$;/msg) {
        my ($noun, $verb, $body) = ($1, $2, $&);
        my ($lists) = $body =~ /check_(?:fields|list)\(p_command,(.*?)\);/s or next;
        for my $field ($lists =~ /([a-z_]+)/g) {
            # Its operand, what `key create` makes itself, and what the help says once for every list.
            next if $field eq $noun || $field =~ /^(key_id|master_id|after|limit)$/ || "$noun $field" eq 'balance merchant';
            my $option = '--' . $field =~ s/_/-/gr;
            $checked++;
            push @missing, "$noun $verb $option" if $usage{$noun} !~ /\Q$option\E\b/;
        }
    }
    cmp_ok($checked, '>', 40, 'commands have options');
    is_deeply(\@missing, [], 'and help names each');
}

# --- packages ----------------------------------------------------------------------------------------------------------------

{
    my ($said) = block('Installing into an nginx that is there', qr/^apt-get install/m) =~ /^apt-get install (.*)/m;
    my ($build) = $t->slurp("$top/t/lib/setup.sh") =~ /^build_packages='(.*?)'/ms;
    is_deeply([sort split ' ', "$said nginx"], [sort split ' ', $build], 'README has the packages that ./demo builds with');
}

# --- the signature -------------------------------------------------------------------------------------------------------------

{
    my $block = block('For merchants', qr/^    openssl/m);
    my ($vector) = $block =~ /^# ([0-9a-f]{64})$/m;
    my ($code, $out) = $t->run('sh', '-c', $block);
    like($out, qr/\b$vector$/m, 'the vector is what its command prints');

    my ($parameter) = section('For merchants') =~ /holds the parameter `(\w+)`/;
    like($t->slurp("$top/ngx_module/ngx_http_affiliate_postback.c"), qr/ngx_strncmp\(name->data, "\Q$parameter\E", name->len\)/,
        "the postback's idempotency key is the parameter that README says");
}

# --- from nothing to an order ----------------------------------------------------------------------------------------------------

$t->redis_start;
$t->pg_start(conf => 'fsync = on');
$t->daemon_conf(
    roles => [qw(clicks conversions holds projection partitions api)],
    conf => { api => { socket => $t->path('state/api.sock'), socket_mode => '0666', temp_path => '/tmp' } });

my ($nginx) = section('Installing into an nginx that is there') =~ /^```nginx\n(.*?)^```/ms;
$nginx =~ s{^load_module \S+;}{load_module $t->{module};\n@{[ $> == 0 ? 'user www-data;' : '' ]}\nevents { }};
$nginx =~ s{unix:/run/redis/redis-server\.sock}{unix:$t->{redis_socket}};
$nginx =~ s{/etc/affiliated/keys}{$t->{keys}};
$nginx =~ s{/var/lib/nginx/affiliate}{$t->{dir}/spool};
$t->{port} ||= $t->port;
$nginx =~ s{(listen\s+)80;}{${1}127.0.0.1:$t->{port};};
$nginx =~ s/^http \{\n/http {\n    access_log off;\n/m;
my ($location) = section('The API') =~ /^```nginx\n(.*?)^```/ms;
$location =~ s{unix:/run/affiliated-api\.sock}{unix:$t->{dir}/state/api.sock};
$nginx =~ s/(?=^        location \/r\/)/$location/m;
$t->nginx_start(conf => $nginx);

# affiliated() and systemctl as the reader's, but for this test's own daemon.
my $as = $> == 0 ? 'setpriv --reuid=postgres --regid=postgres --clear-groups --' : '';
my ($code, $out) = $t->cli('-V');    # puts the program where that user may run it
my $shell = <<"END";
set -e
systemctl() { :; }
affiliated() { $as $t->{dir}/affiliated -c $t->{dir}/affiliated.conf "\$@"; }
END

sub script
{
    my ($name, $text, $pattern) = @_;
    my ($code, $out, $err) = $t->run({ dir => $top }, 'sh', '-c', $shell . ($text =~ s/^affiliated\(\).*\n//mr));

    is($code, 0, "as printed: $name") or diag "$out$err";
    like($out, $pattern, 'it answers') or diag "$out$err";
    return $out;
}

my ($start, $create) = block('The daemon', qr/^affiliated migrate/m) =~ /(.*?)(^affiliated merchant create.*)/ms;
like($start, qr/\bmigrate\b.*\bsystemctl\b.*\s-t\b/s, 'it migrates, starts, and then checks');
$t->daemon_start;
$t->wait_until('partitions', sub { $t->value('select count(*) from affiliate.click_partitions()') > 0 });
$t->redis('CONFIG', 'SET', 'maxmemory-policy', 'noeviction');
script('the start', $start, qr/^ok    Redis is a master/m);
my $made = script('a merchant, an affiliate, a campaign, a link, a key', $create, qr/^link: /m);
my ($link) = $made =~ /^link: +(\S+)/m;
my ($key) = $made =~ /^key: +(\S+)/m;
my ($secret) = $made =~ /^secret: +(\S+)/m;

my ($follow) = section('The daemon') =~ /`(curl .*?)`/;
my $click;
$t->wait_until('the link redirects', sub {
    my (undef, $answer) = $t->run('sh', '-c', "$follow -s -H 'Host: go.example.com' http://127.0.0.1:$t->{port}/r/$link");
    ($click) = $answer =~ /affiliate_click_id=(\w+)/;
});
ok($click, 'curl as printed gets a click_id');

my $report = block('For merchants', qr/sign\.sh/);
$report =~ s{http://go\.example\.com/}{http://127.0.0.1:$t->{port}/};
$report =~ s/ak_live_…/$key/;
$report =~ s/aks_live_…/$secret/;
$report =~ s/"click_id":"[^"]*"/"click_id":"$click"/;
script('an order', $report, qr/^202$/m);
$t->wait_until('the order', sub { $t->value('select count(*) from affiliate.order_fact') == 1 });

$out = script('what there is to see', block('The daemon', qr/^affiliated audit/m), qr/^the books hold$/m);
like($out, qr/\b125\.05\b/, 'the commission');
like($out, qr/^state: +approved$/m, 'the order');
like($out, qr/^role: +holds$/m, 'the roles');

my $login = block('The API', qr/user create/) =~ s{https://api\.example\.com}{http://127.0.0.1:$t->{port}}gr =~ s{\bjar\b}{$t->{dir}/jar}gr;
script('the first admin logs in', $login, qr/"admin":\s*true/);
for my $file ($readme =~ /\]\(([^)#:]+)\)/g) {
    ok(-s "$top/$file", "README links to $file");
}

done_testing();
