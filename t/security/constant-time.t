# What compares secrets compares them all: signatures by CRYPTO_memcmp, MACs as words. Read from the sources.

use strict;
use warnings;

use Test::More;

my %source;

for my $path (glob('protocol/*.[ch]'), glob('ngx_module/*.[ch]'), glob('worker/*.[ch]'), glob('worker/*/*.[ch]')) {
    open my $file, '<', $path or die "$path: $!\n";
    local $/;
    $source{$path} = <$file>;
    $source{$path} =~ s{/\*.*?\*/|//[^\n]*}{}gs;
}

sub body
{
    my ($path, $name) = @_;
    my ($text) = ($source{$path} || '') =~ /^\Q$name\E\((?:[^;{]*)\)\n\{\n(.*?)^\}/ms;

    return $text // '';
}

# --- the code that decides ------------------------------------------------------------------------------------------------------

my $match = body('protocol/signature.c', 'aff_signature_match');
like($match, qr/CRYPTO_memcmp\(expected, given\[i\], AFF_SIGNATURE_BYTES\)/, 'signatures are compared by CRYPTO_memcmp, all their bytes');
unlike($match, qr/\b(?:break|goto)\b|return[^;]*;.*return/s, 'each that was given, whether or not one before it matched');

my $equal = body('protocol/click_id.c', 'mac_equal');
like($equal, qr/\w/, 'MACs of click_ids have a comparison of their own');
unlike($equal, qr/\b(?:if|for|while)\b|\?|&&|\|\||[=!]=/, 'without a branch');
unlike(body('protocol/click_id.c', 'aff_click_id_verify') =~ s/^.*?mac = //sr =~ s/if \(genuine\).*//sr, qr/\b(?:if|break|return)\b/,
    'and no key that matches ends the search');

for my $path ('protocol/batch.c', 'protocol/projection.c') {
    like($source{$path}, qr/uint64_t mac\b/, "$path takes a MAC as one word");
}

# --- and there is no other ----------------------------------------------------------------------------------------------------------

my $compare = qr/\b(?:ngx_)?(?:mem|str|strn|strcase|strncase)(?:n?cmp|casecmp)\s*\(|\baff_slice_equal\s*\(/;
my $secret = qr/mac|signature|secret|digest|hmac|expected|given/i;
my @found;
my $seen = 0;

for my $path (sort keys %source) {
    while ($source{$path} =~ /$compare([^;{]*)/g) {
        my $arguments = $1;
        $seen++;
        # fraud.c asks whether its own copy of a key is still that of the key file: nobody outside gave either.
        push @found, "$path: $arguments" if $arguments =~ /$secret/ && $arguments !~ /_fraud_day\.made_of\b/;
    }
}
cmp_ok($seen, '>', 20, 'comparisons are found where there are some');
is(join("\n", @found), '', 'nothing that is a secret is compared by memcmp() or the like');

my @callers = grep { $source{$_} =~ /\baff_signature_match\(/ } sort keys %source;
ok(scalar(grep { m{^ngx_module/} } @callers), 'the module asks this function') or diag "@callers";

done_testing();
