//! The `provider` object of a request: whom the requester wants to answer, and who that leaves.

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use tirami_core::{ModelDigest, PartyId, Ppm, Timestamp};
use tirami_kernel::Kernel;
use tirami_kernel::scheduler::{Data, Preferences, Sort};
use tirami_proto::Offer;
use tirami_sdk::Amount;

use super::chat::{flag, present};
use super::error::ApiError;

/// Entries of each list at most.
const LIST_MAX: usize = 256;

/// The requester's wishes; the default when there is no `provider` object.
pub(super) fn read(fields: &Map<String, Value>) -> Result<Preferences, ApiError> {
    let fields = match present(fields, "provider") {
        None => return Ok(Preferences::default()),
        Some(Value::Object(fields)) => fields,
        Some(_) => return Err(wrong("provider", "must be an object")),
    };
    for name in fields.keys() {
        if !KNOWN.contains(&name.as_str()) {
            let param = format!("provider.{name}");
            let message = format!("{param} is not supported here; leave it out");
            return Err(ApiError::unsupported(&param, message));
        }
    }
    Ok(Preferences {
        order: parties(fields, "order")?,
        only: parties(fields, "only")?,
        ignore: parties(fields, "ignore")?,
        allow_fallbacks: flag(fields, "allow_fallbacks")
            .map_err(|_| wrong("provider.allow_fallbacks", "must be true or false"))?
            .unwrap_or(true),
        quantizations: texts(fields, "quantizations")?,
        max_price: max_price(fields)?,
        sort: sort(fields)?,
        min_throughput_milli: min_throughput(fields)?,
        data: data(fields)?,
    })
}

const KNOWN: [&str; 9] = [
    "order",
    "only",
    "ignore",
    "allow_fallbacks",
    "quantizations",
    "max_price",
    "sort",
    "min_throughput",
    "data",
];

fn texts(fields: &Map<String, Value>, name: &str) -> Result<Vec<String>, ApiError> {
    let param = format!("provider.{name}");
    let list = match present(fields, name) {
        None => return Ok(Vec::new()),
        Some(Value::Array(list)) if list.len() <= LIST_MAX => list,
        Some(_) => return Err(wrong(&param, "must be a list of at most 256 texts")),
    };
    let texts = list.iter().map(|text| text.as_str().map(str::to_owned));
    texts.collect::<Option<_>>().ok_or_else(|| wrong(&param, "must be a list of texts"))
}

fn parties(fields: &Map<String, Value>, name: &str) -> Result<Vec<PartyId>, ApiError> {
    let param = format!("provider.{name}");
    let parse = |text: String| party(&param, text.strip_prefix("did:tirami:").unwrap_or(&text));
    texts(fields, name)?.into_iter().map(parse).collect()
}

/// Reads the party of a node.
pub(super) fn party(param: &str, text: &str) -> Result<PartyId, ApiError> {
    text.parse().map_err(|_| wrong(param, "must name a node by its 64 hexadecimal digits"))
}

/// TRM for 10⁹ FLOP.
fn max_price(fields: &Map<String, Value>) -> Result<Option<Ppm>, ApiError> {
    let text = match present(fields, "max_price") {
        None => return Ok(None),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Number(number)) => number.to_string(),
        Some(_) => return Err(wrong("provider.max_price", PRICE)),
    };
    let amount: Amount = text.parse().map_err(|_| wrong("provider.max_price", PRICE))?;
    let micro = u32::try_from(amount.trm().micro()).unwrap_or(u32::MAX);
    Ok(Some(Ppm::new(micro)))
}

const PRICE: &str = "must be an amount of TRM for 10^9 FLOP";

fn sort(fields: &Map<String, Value>) -> Result<Option<Sort>, ApiError> {
    present(fields, "sort").map(|sort| sort_of("provider.sort", sort.as_str())).transpose()
}

/// Reads what counts before everything else.
pub(super) fn sort_of(param: &str, text: Option<&str>) -> Result<Sort, ApiError> {
    match text {
        Some("price") => Ok(Sort::Price),
        Some("throughput") => Ok(Sort::Throughput),
        Some("latency") => Ok(Sort::Latency),
        _ => Err(wrong(param, "must be price, throughput or latency")),
    }
}

fn min_throughput(fields: &Map<String, Value>) -> Result<Option<u32>, ApiError> {
    let range = "must be a number of tokens per second from 0 to 1000000";
    let Some(value) = present(fields, "min_throughput") else { return Ok(None) };
    let speed = value.as_f64().filter(|speed| (0.0..=1_000_000.0).contains(speed));
    let speed = speed.ok_or_else(|| wrong("provider.min_throughput", range))?;
    Ok(Some((speed * 1_000.0) as u32))
}

fn data(fields: &Map<String, Value>) -> Result<Data, ApiError> {
    match present(fields, "data").map(Value::as_str) {
        None | Some(Some("any")) => Ok(Data::Any),
        Some(Some("trusted")) => Ok(Data::Trusted),
        Some(_) => Err(wrong("provider.data", "must be any or trusted")),
    }
}

fn wrong(param: &str, must: &str) -> ApiError {
    ApiError::invalid(param, format!("{param} {must}"))
}

/// Whether the requester lets this node's own engine answer.
pub(super) fn takes(wish: &Preferences, own: PartyId, quantisation: &str, price: Ppm) -> bool {
    (wish.only.is_empty() || wish.only.contains(&own))
        && !wish.ignore.contains(&own)
        && is_quantised(wish, quantisation)
        && wish.max_price.is_none_or(|max| price <= max)
}

/// Whether the requester wants this node's own engine to answer: whoever names another one first
/// wants that one.
pub(super) fn wants(wish: &Preferences, own: PartyId, quantisation: &str, price: Ppm) -> bool {
    wish.order.first().is_none_or(|first| *first == own) && takes(wish, own, quantisation, price)
}

fn is_quantised(wish: &Preferences, quantisation: &str) -> bool {
    let same = |name: &String| name.eq_ignore_ascii_case(quantisation);
    wish.quantizations.is_empty() || wish.quantizations.iter().any(same)
}

/// The models that others offer under this name, in a quantisation the requester takes, or under
/// this digest; the one that most nodes serve first.
pub(super) fn offered(
    kernel: &Kernel,
    now: Timestamp,
    name: Option<&str>,
    wish: &Preferences,
) -> Vec<Offer> {
    let own = kernel.ledger().party();
    let mut models = BTreeMap::<ModelDigest, (u32, &Offer)>::new();
    for provider in kernel.mesh().providers(now).filter(|known| known.signal.provider != own) {
        for offer in &provider.signal.models {
            let is_named = name.is_none_or(|name| name == offer.name)
                && is_quantised(wish, &offer.quantisation);
            if is_named || name.is_some_and(|name| name == offer.model.to_string()) {
                let weight = if provider.connected && provider.signal.serving { 1_000 } else { 1 };
                models.entry(offer.model).or_insert((0, offer)).0 += weight;
            }
        }
    }
    let mut models: Vec<_> = models.into_values().collect();
    models.sort_by_key(|(weight, _)| core::cmp::Reverse(*weight));
    models.into_iter().map(|(_, offer)| offer.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(provider: &str) -> Result<Preferences, String> {
        let fields = serde_json::from_str(&format!(r#"{{"provider":{provider}}}"#)).unwrap();
        super::read(&fields).map_err(|error| error.body().error.message.clone())
    }

    #[test]
    fn what_the_requester_wants_is_read() {
        let party = "07".repeat(32);
        let wish = read(&format!(
            r#"{{"order":["{party}"],"only":["did:tirami:{party}"],"allow_fallbacks":false,
                "quantizations":["Q4_1"],"max_price":"1.5","sort":"latency",
                "min_throughput":2.5,"data":"trusted"}}"#
        ))
        .unwrap();
        let party = PartyId::from_bytes([7; 32]);
        let expected = Preferences {
            order: vec![party],
            only: vec![party],
            ignore: Vec::new(),
            allow_fallbacks: false,
            quantizations: vec!["Q4_1".to_owned()],
            max_price: Some(Ppm::new(1_500_000)),
            sort: Some(Sort::Latency),
            min_throughput_milli: Some(2_500),
            data: Data::Trusted,
        };
        assert_eq!(wish, expected);
        assert_eq!(read("{}").unwrap(), Preferences::default());
        assert_eq!(read("null").unwrap(), Preferences::default());
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (provider, start) in [
            ("7", "provider must be an object"),
            (r#"{"order":["openai"]}"#, "provider.order must name a node"),
            (r#"{"only":7}"#, "provider.only must be a list"),
            (r#"{"allow_fallbacks":1}"#, "provider.allow_fallbacks must be"),
            (r#"{"max_price":"x"}"#, "provider.max_price must be"),
            (r#"{"sort":"best"}"#, "provider.sort must be"),
            (r#"{"min_throughput":-1}"#, "provider.min_throughput must be"),
            (r#"{"data":"deny"}"#, "provider.data must be"),
            (r#"{"zdr":true}"#, "provider.zdr is not supported"),
        ] {
            let error = read(provider).unwrap_err();
            assert!(error.starts_with(start), "{provider}: {error}");
        }
    }
}
