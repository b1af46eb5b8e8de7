/* Asks resolvers of ours for TXT records: whatever the name, they are asked, not the site. */

#include "worker/site/address.h"
#include "worker/site/prove.h"
#include "worker/site/txt.h"

#include <arpa/nameser.h>
#include <netdb.h>
#include <resolv.h>
#include <stdlib.h>
#include <string.h>

#define DNS_ANSWER_MAX 65535

/* The resolver's state is large: not on a thread's stack. */
struct dns {
    struct __res_state state;
    uint8_t answer[DNS_ANSWER_MAX];
    struct txt_records records;
};

static bool
dns_set_server(struct dns *dns, const char *server)
{
    struct sockaddr_storage address;
    socklen_t len;

    if (!address_parse(server, &address, &len) || address.ss_family != AF_INET) {
        return false;
    }

    memcpy(&dns->state.nsaddr_list[0], &address, sizeof(dns->state.nsaddr_list[0]));
    dns->state.nscount = 1;
    return true;
}

static bool
dns_compare(const struct prove *prove, const struct dns *dns, const char *name, char *detail)
{
    const struct txt_record *first = &dns->records.records[0];
    char wanted[128], shown[100];

    snprintf(wanted, sizeof(wanted), "affiliated-site=%s", prove->challenge);
    if (txt_has(&dns->records, aff_slice_of(wanted))) {
        return true;
    }

    if (dns->records.count == 0) {
        snprintf(
            detail, PROVE_DETAIL_MAX, "%.260s has no TXT record; it should be '%s'", name, wanted);
        return false;
    }

    txt_show(aff_slice(first->bytes, first->len), shown, sizeof(shown));
    snprintf(detail, PROVE_DETAIL_MAX, "the TXT record %.200s has '%s'%s, not '%s'", name, shown,
        dns->records.found > 1 ? " and others" : "", wanted);
    return false;
}

static bool
dns_judge(const struct prove *prove, struct dns *dns, const char *name, int len, char *detail)
{
    /* A failure is told by what was answered, if anything was. */
    enum txt_answer answer = TXT_FAILED;

    if (len > 0) {
        answer =
            txt_parse(aff_slice(dns->answer, len < DNS_ANSWER_MAX ? (size_t) len : DNS_ANSWER_MAX),
                &dns->records);
    } else if (dns->state.res_h_errno == HOST_NOT_FOUND) {
        answer = TXT_NO_NAME;
    } else if (dns->state.res_h_errno == NO_DATA) {
        answer = TXT_OK;
    }

    switch (answer) {
    case TXT_OK:
        return dns_compare(prove, dns, name, detail);
    case TXT_NO_NAME:
        snprintf(detail, PROVE_DETAIL_MAX,
            "there is no %.200s in the DNS; it needs a TXT record 'affiliated-site=%.64s'", name,
            prove->challenge);
        return false;
    case TXT_FAILED:
        snprintf(detail, PROVE_DETAIL_MAX,
            "the name servers did not answer for %.260s; this is tried again", name);
        return false;
    case TXT_GARBLED:
        break;
    }

    snprintf(detail, PROVE_DETAIL_MAX, "the answer for %.260s can't be read", name);
    return false;
}

bool
prove_dns(const struct prove *prove, char detail[PROVE_DETAIL_MAX])
{
    const struct config *config = prove->config;
    struct dns *dns = calloc(1, sizeof(*dns));
    char name[300];
    bool ok;
    int len;

    if (dns == NULL || res_ninit(&dns->state) != 0) {
        snprintf(detail, PROVE_DETAIL_MAX, "the resolver can't be set up; this is tried again");
        free(dns);
        return false;
    }

    /* Two rounds over all servers in the time that there is. */
    dns->state.retry = 2;
    dns->state.options |= RES_USE_EDNS0;
    if (config->sites.dns_server[0] != '\0' && !dns_set_server(dns, config->sites.dns_server)) {
        snprintf(detail, PROVE_DETAIL_MAX, "sites.dns_server is not like 192.0.2.1:53");
        res_nclose(&dns->state);
        free(dns);
        return false;
    }

    dns->state.retrans = (int) (config->sites.timeout / 1000 / 2 /
                                (dns->state.nscount > 0 ? dns->state.nscount : 1));
    dns->state.retrans = dns->state.retrans > 0 ? dns->state.retrans : 1;
    snprintf(name, sizeof(name), "_affiliated.%s", prove->host);
    len = res_nquery(&dns->state, name, ns_c_in, ns_t_txt, dns->answer, sizeof(dns->answer));
    ok = dns_judge(prove, dns, name, len, detail);
    res_nclose(&dns->state);
    free(dns);
    return ok;
}
