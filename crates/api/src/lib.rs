//! What travels between the controller and its users and hosts, and the client that both use. No behaviour.

mod call;
mod certificate;
mod client;
mod error;
mod host_api;
mod joining;
mod view;

pub use call::{CALL_PROTOCOL, Call, CallAnswer, CallKind, HostNews, ScriptRunView};
pub use certificate::{CertificateFormat, CertificateRequest, CertificateSecret, CertificateView};
pub use client::{Client, ClientError};
pub use error::{ApiDiagnostic, ApiError, ErrorCode};
pub use host_api::ReportAnswer;
pub use joining::{CertificateAnswer, JoinRequest, RenewRequest, TokenRequest, TokenView};
pub use view::{
    AddressView, BreakerView, DeployRequest, DeploymentView, EndpointView, EventView, HostView, ImageView,
    InstanceView, MetricRequest, PlanStep, PlanView, RoleView, RollbackRequest, ScaleRequest, ServiceView, SourceFile,
    StepView, TraceStep, TraceView, UpdateView, UpgradeRequest, UsageView, WalkRequest,
};

/// The header in which a client names a request, at random, so that it is carried out once however often it is sent.
pub const REQUEST_HEADER: &str = "x-mayfly-request";
