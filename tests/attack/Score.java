import java.io.ByteArrayInputStream;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublisher;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandlers;

/** Sends one row, two streams of 1,000 rows and a probe with Java's own client; prints what came back. */
class Score {
    private static final HttpClient CLIENT = HttpClient.newHttpClient();

    public static void main(String[] arguments) throws Exception {
        String url = arguments[0];
        HttpResponse<String> row = post(url, "application/json", BodyPublishers.ofString("{\"instances\": [[1, 2]]}"));
        System.out.println(row.statusCode() + " " + row.body());
        String lines = "[1, 2]\n".repeat(1000);
        count(post(url, "application/x-ndjson", BodyPublishers.ofString(lines)));
        byte[] bytes = lines.getBytes();
        count(post(url, "application/x-ndjson", BodyPublishers.ofInputStream(() -> new ByteArrayInputStream(bytes))));
        HttpRequest probe = HttpRequest.newBuilder(URI.create(url + "/livez")).build();
        System.out.println(CLIENT.send(probe, BodyHandlers.discarding()).statusCode());
    }

    private static HttpResponse<String> post(String url, String type, BodyPublisher body) throws Exception {
        HttpRequest.Builder request = HttpRequest.newBuilder(URI.create(url + "/encode")).header("content-type", type);
        return CLIENT.send(request.POST(body).build(), BodyHandlers.ofString());
    }

    private static void count(HttpResponse<String> response) {
        System.out.println(response.statusCode() + " " + response.body().lines().count() + " lines");
    }
}
