//! Reads the `provider` object of a request: whom the requester wants to answer.

use serde_json::{Map, Value};
use tirami_core::{PartyId, Ppm};
use tirami_kernel::scheduler::{Data, Preferences, Sort};
use tirami_sdk::Amount;

use super::request::{flag, present};
use crate::http::error::ApiError;

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
    let parse = |text: String| {
        let hex = text.strip_prefix("did:tirami:").unwrap_or(&text);
        hex.parse().map_err(|_| wrong(&param, "must name nodes by their 64 hexadecimal digits"))
    };
    texts(fields, name)?.into_iter().map(parse).collect()
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
    match present(fields, "sort").map(Value::as_str) {
        None => Ok(None),
        Some(Some("price")) => Ok(Some(Sort::Price)),
        Some(Some("throughput")) => Ok(Some(Sort::Throughput)),
        Some(Some("latency")) => Ok(Some(Sort::Latency)),
        Some(_) => Err(wrong("provider.sort", "must be price, throughput or latency")),
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
            (r#"{"order":["openai"]}"#, "provider.order must name nodes"),
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
