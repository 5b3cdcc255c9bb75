//! The description of the API, and the page.

use crate::client::start;

#[tokio::test]
async fn the_served_description_is_openapi_3_1_and_has_every_route() {
    let app = start().await;
    let api = app.get("/openapi.json").await.body;
    assert!(api["openapi"].as_str().unwrap().starts_with("3.1"), "{}", api["openapi"]);
    for (path, method) in [
        ("/v1", "get"),
        ("/v1/status", "get"),
        ("/v1/locks/{name}", "get"),
        ("/v1/locks/{name}/acquire", "post"),
        ("/v1/locks/{name}/renew", "post"),
        ("/v1/locks/{name}/release", "post"),
        ("/v1/locks/{name}/force-release", "post"),
        ("/v1/elections/{name}", "get"),
        ("/v1/elections/{name}/leading", "get"),
        ("/v1/elections/{name}/events", "get"),
        ("/v1/elections/{name}/campaign", "post"),
        ("/v1/elections/{name}/resign", "post"),
        ("/v1/holds/{holdId}", "get"),
        ("/v1/holds/{holdId}/events", "get"),
        ("/v1/holds/{holdId}/heartbeat", "post"),
    ] {
        let operation = &api["paths"][path][method];
        assert!(operation["description"].is_string() || operation["summary"].is_string(), "{path}");
        assert!(operation["responses"]["200"].is_object(), "{path}");
    }
}

#[tokio::test]
async fn the_page_and_the_catalogue_are_served() {
    let app = start().await;
    let page = app.get("/").await;
    assert_eq!(page.status, 200);
    assert!(page.body.as_str().unwrap().contains("<title>Holdfast</title>"));
    let all = app.get("/v1").await.body;
    let names: Vec<_> = all["classes"].as_array().unwrap().iter().map(|c| &c["name"]).collect();
    assert_eq!(names, ["boss", "guarded", "job", "slow"]);
    assert_eq!(all["classes"][2]["path"], "/v1/locks/job");
}
