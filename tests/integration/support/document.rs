//! The documents of the interface, to hold real answers and frames to: what they tell is there, and nothing
//! more.

use jsonschema::Validator;
use serde_json::{Value, json};

use super::http::{Answer, get};
use super::vm::Vm;

pub struct Document(pub Value);

impl Document {
    /// Closed: who reads the document ignores what it does not name, but here it would be untold.
    pub async fn of(vm: &Vm, path: &str) -> Self {
        let mut document = get(vm.port, path).await.json();
        close(&mut document["components"]);
        close(&mut document["paths"]);
        Self(document)
    }

    pub fn validator(&self, schema: &Value) -> Validator {
        let mut root = schema.clone();
        root["components"] = self.0["components"].clone();
        jsonschema::validator_for(&root).unwrap()
    }

    #[track_caller]
    fn check(&self, what: &str, schema: &Value, value: &Value) {
        let validator = self.validator(schema);
        let errors: Vec<_> = validator.iter_errors(value).map(|error| error.to_string()).collect();
        assert!(errors.is_empty(), "{what}: {errors:#?} in {value}");
    }

    fn resolve<'a>(&'a self, value: &'a Value) -> &'a Value {
        value["$ref"].as_str().map_or(value, |pointer| self.0.pointer(&pointer[1..]).unwrap())
    }

    /// Checks an answer against what the document says of its route.
    #[track_caller]
    pub fn check_answer(&self, method: &str, route: &str, answer: &Answer) {
        let what = format!("{method} {route}: {}", answer.status);
        let responses = &self.0["paths"][route][method.to_lowercase()]["responses"];
        let listed = responses.get(answer.status.to_string());
        // A range stands for what is not listed by itself.
        let listed = listed.unwrap_or(&responses[format!("{}XX", answer.status / 100)]);
        let response = self.resolve(listed);
        assert!(response.is_object(), "{what} is not documented: {}", answer.text());
        for (name, header) in response["headers"].as_object().into_iter().flatten() {
            let header = self.resolve(header);
            let value = answer.header(name);
            assert!(header["required"] != true || !value.is_empty(), "{what}: {name} is missing");
            if !value.is_empty() {
                let is_number = header["schema"]["type"] == "integer";
                let value = if is_number { value.parse::<i64>().unwrap().into() } else { json!(value) };
                self.check(&format!("{what}: {name}"), &header["schema"], &value);
            }
        }
        let Some(content) = response["content"].as_object() else {
            assert!(answer.body.is_empty(), "{what}: {}", answer.text());
            return;
        };
        let mime = answer.header("content-type").split(';').next().unwrap();
        let media = content.get(mime).or(content.get("*/*"));
        let media = media.unwrap_or_else(|| panic!("{what}: {mime} is not documented"));
        let is_json = mime == "application/json" && !content.contains_key("*/*");
        let body = if is_json { answer.json() } else { json!(answer.text()) };
        self.check(&what, &media["schema"], &body);
    }

    /// The schemas of what goes one way on the socket, by the name of the message.
    pub fn messages(&self, operation: &str) -> Vec<(&str, &Value)> {
        let messages = self.0["operations"][operation]["messages"].as_array().unwrap();
        let message = |listed| {
            let named = self.resolve(self.resolve(listed));
            (listed["$ref"].as_str().unwrap().rsplit('/').next().unwrap(), &named["payload"])
        };
        messages.iter().map(message).collect()
    }

    /// Checks a frame and returns the document's name of it.
    #[track_caller]
    pub fn check_frame(&self, frame: &Value) -> &str {
        let messages = self.messages("tell");
        let is_named = |schema: &Value| schema["properties"]["type"]["const"] == frame["type"];
        let own = messages.iter().find(|(_, schema)| is_named(self.resolve(schema)));
        // Any other name is an app's.
        let (name, schema) = own.or(messages.iter().find(|(name, _)| *name == "appEvent")).unwrap();
        self.check(name, schema, frame);
        name
    }
}

fn close(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            fields.values_mut().for_each(close);
            if fields.get("type").is_some_and(|kind| kind == "object") && fields.contains_key("properties") {
                fields.insert("additionalProperties".into(), false.into());
            }
        }
        Value::Array(items) => items.iter_mut().for_each(close),
        _ => {}
    }
}
