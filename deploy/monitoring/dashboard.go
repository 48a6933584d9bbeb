package monitoring

import (
	"encoding/json"
	"strings"
)

// The part of Grafana's dashboard model (schema version 39, Grafana 10 and later) that is used.
type (
	dashboard struct {
		UID           string     `json:"uid"`
		Title         string     `json:"title"`
		Description   string     `json:"description"`
		Tags          []string   `json:"tags"`
		SchemaVersion int        `json:"schemaVersion"`
		Editable      bool       `json:"editable"`
		Refresh       string     `json:"refresh"`
		Time          timeRange  `json:"time"`
		Templating    templating `json:"templating"`
		Panels        []panel    `json:"panels"`
	}
	timeRange struct {
		From string `json:"from"`
		To   string `json:"to"`
	}
	templating struct {
		List []variable `json:"list"`
	}
	variable struct {
		Name       string      `json:"name"`
		Label      string      `json:"label"`
		Type       string      `json:"type"`
		Query      any         `json:"query"`
		Datasource *datasource `json:"datasource,omitempty"`
		Refresh    int         `json:"refresh"`
		IncludeAll bool        `json:"includeAll"`
		AllValue   string      `json:"allValue,omitempty"`
		Multi      bool        `json:"multi"`
		Current    any         `json:"current"`
	}
	datasource struct {
		Type string `json:"type"`
		UID  string `json:"uid"`
	}
	panel struct {
		ID          int          `json:"id"`
		Type        string       `json:"type"`
		Title       string       `json:"title"`
		Description string       `json:"description,omitempty"`
		GridPos     gridPos      `json:"gridPos"`
		Datasource  *datasource  `json:"datasource,omitempty"`
		Targets     []target     `json:"targets,omitempty"`
		FieldConfig *fieldConfig `json:"fieldConfig,omitempty"`
		Collapsed   *bool        `json:"collapsed,omitempty"`
	}
	gridPos struct {
		H int `json:"h"`
		W int `json:"w"`
		X int `json:"x"`
		Y int `json:"y"`
	}
	target struct {
		RefID        string      `json:"refId"`
		Datasource   *datasource `json:"datasource"`
		Expr         string      `json:"expr"`
		LegendFormat string      `json:"legendFormat"`
		Instant      bool        `json:"instant"`
		Range        bool        `json:"range"`
	}
	fieldConfig struct {
		Defaults struct {
			Unit Unit `json:"unit"`
		} `json:"defaults"`
		Overrides []struct{} `json:"overrides"`
	}
)

// Dashboard is the JSON of the Grafana dashboard.
func Dashboard() ([]byte, error) {
	source := &datasource{Type: "prometheus", UID: "${datasource}"}
	all := map[string]any{"text": "All", "value": "$__all"}
	values := func(name, label, query string) variable {
		return variable{Name: name, Label: label, Type: "query", Query: map[string]string{"query": query, "refId": name}, Datasource: source, Refresh: 2,
			IncludeAll: true, AllValue: ".*", Multi: true, Current: all}
	}
	d := dashboard{
		UID: "safeconduct", Title: "Safeconduct", Tags: []string{"safeconduct"}, SchemaVersion: 39, Refresh: "30s", Time: timeRange{"now-6h", "now"},
		Description: "Attested live migration of VMs with a vTPM. Generated: go test ./deploy/monitoring -update",
		Templating: templating{[]variable{
			{Name: "datasource", Label: "Prometheus", Type: "datasource", Query: "prometheus", Current: map[string]any{}},
			values("mode", "Mode", "label_values(safeconduct_build_info, mode)"),
			values("instance", "Node", `label_values(safeconduct_build_info{mode=~"$mode"}, instance)`),
		}},
	}
	y := 0
	add := func(p panel) {
		p.ID = len(d.Panels) + 1
		d.Panels = append(d.Panels, p)
	}
	const width, height, columns = 8, 8, 3
	for _, row := range Rows() {
		add(panel{Type: "row", Title: row.Title, GridPos: gridPos{H: 1, W: 24, Y: y}, Collapsed: new(bool)})
		y++
		for i, q := range row.Questions {
			fields := &fieldConfig{Overrides: []struct{}{}}
			fields.Defaults.Unit = q.Unit
			kind := "timeseries"
			if q.Now {
				kind = "stat"
			}
			add(panel{
				Type: kind, Title: q.Title, Description: q.Means, Datasource: source, FieldConfig: fields,
				GridPos: gridPos{H: height, W: width, X: i % columns * width, Y: y + i/columns*height},
				Targets: []target{{RefID: "A", Datasource: source, LegendFormat: q.Legend, Instant: q.Now, Range: !q.Now,
					Expr: strings.ReplaceAll(q.Expr, "$window", "$__rate_interval")}},
			})
		}
		y += (len(row.Questions) + columns - 1) / columns * height
	}
	raw, err := json.MarshalIndent(d, "", "  ")
	return append(raw, '\n'), err
}

// Expressions are the queries of a dashboard's JSON as Prometheus takes them, with its variables replaced: every node, and rates over window.
func Expressions(raw []byte, window string) (map[string]string, error) {
	var d dashboard
	if err := json.Unmarshal(raw, &d); err != nil {
		return nil, err
	}
	fill := strings.NewReplacer("$__rate_interval", window, "$instance", ".*", "$mode", ".*")
	out := map[string]string{}
	for _, p := range d.Panels {
		for _, t := range p.Targets {
			out[p.Title] = fill.Replace(t.Expr)
		}
	}
	return out, nil
}

// MayBeEmpty says whether the question of a title may have no answer.
func MayBeEmpty(title string) bool {
	for _, r := range Rows() {
		for _, q := range r.Questions {
			if q.Title == title {
				return q.MayBeEmpty
			}
		}
	}
	return false
}
