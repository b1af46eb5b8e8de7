
/*
 * Fraud signals at click time: a verdict and the reasons for it.
 */

#ifndef _NGX_HTTP_AFFILIATE_FRAUD_H_INCLUDED_
#define _NGX_HTTP_AFFILIATE_FRAUD_H_INCLUDED_


#include <ngx_config.h>
#include <ngx_core.h>
#include <ngx_http.h>

#include "../protocol/click.h"
#include "../protocol/keyring.h"


/*
 * Limits of a location; rates in clicks a minute, 0 is off.  The burst must
 * follow its rate: one setter fills both.
 */
typedef struct {
    ngx_uint_t                       address_rate;
    ngx_uint_t                       address_burst;
    ngx_uint_t                       link_rate;
    ngx_uint_t                       link_burst;
    ngx_msec_t                       duplicate_window;
    ngx_array_t                     *signals;   /* of ..._signal_t */
} ngx_http_affiliate_fraud_conf_t;


typedef struct {
    ngx_str_t                        name;
    ngx_http_complex_value_t         value;
    ngx_uint_t                       verdict;   /* enum aff_verdict, by name */
} ngx_http_affiliate_signal_t;


/* The shared tables; an opaque block of the zone, lossy and of fixed size. */
typedef struct ngx_http_affiliate_fraud_tables_s
    ngx_http_affiliate_fraud_tables_t;


/*
 * Setters.  "affiliate_signal name value" and "affiliate_signal off", TAKE12:
 * cmd->offset is that of fraud.signals.  "affiliate_address_rate" and
 * "affiliate_link_rate", both "rate=Nr/s|Nr/m [burst=N]" or "off", TAKE12:
 * cmd->offset is that of fraud.address_rate or fraud.link_rate.
 * "affiliate_duplicate_window" is a plain ngx_conf_set_msec_slot().
 */
char *ngx_http_affiliate_signal_directive(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
char *ngx_http_affiliate_rate_directive(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);

/*
 * For create_loc_conf and merge_loc_conf; the latter holds the defaults:
 * addresses 600 a minute, burst 600; links off; duplicates within a minute.
 */
void ngx_http_affiliate_fraud_unset(ngx_http_affiliate_fraud_conf_t *conf);
void ngx_http_affiliate_fraud_merge(ngx_http_affiliate_fraud_conf_t *prev,
    ngx_http_affiliate_fraud_conf_t *conf);

/* Bytes the tables take of a zone of this size: a power of two. */
size_t ngx_http_affiliate_fraud_size(size_t zone_size);

/* Prepares zeroed memory of that size, aligned to 64 bytes. */
ngx_http_affiliate_fraud_tables_t *ngx_http_affiliate_fraud_init(void *mem,
    size_t size);

/*
 * Fills click->verdict, reasons, signals, visitor, address_family, prefix,
 * user_agent and referrer from the request; click->merchant_id, link_id and
 * livemode are set already.  Strings point into the request.  Counts the click
 * in the rate and duplicate tables.  Never blocks, never fails: what can't be
 * told is not held against the visitor.
 */
void ngx_http_affiliate_fraud_judge(ngx_http_request_t *r,
    ngx_http_affiliate_fraud_conf_t *conf,
    ngx_http_affiliate_fraud_tables_t *tables,
    const struct aff_keyring *keyring, struct aff_click *click);


/* What a User-Agent declares itself to be. */
typedef enum {
    NGX_HTTP_AFFILIATE_AGENT_HUMAN = 0,
    NGX_HTTP_AFFILIATE_AGENT_BOT,
    NGX_HTTP_AFFILIATE_AGENT_PREVIEW,
} ngx_http_affiliate_agent_e;

ngx_http_affiliate_agent_e ngx_http_affiliate_agent_classify(
    const u_char *agent, size_t len);


#endif /* _NGX_HTTP_AFFILIATE_FRAUD_H_INCLUDED_ */
